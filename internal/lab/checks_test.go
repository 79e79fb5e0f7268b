package lab_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/check"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/model"
)

// checkAll is the verb that makes the checks of these tests on a node: targets
// come in as JSON, verdicts go out. With a patience each check is made until
// it is up or the time is over.
func checkAll(patience time.Duration) error {
	var targets []model.Target
	if err := json.NewDecoder(os.Stdin).Decode(&targets); err != nil {
		return err
	}
	verdicts := make([]model.Verdict, len(targets))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() {
			again := time.NewTicker(100 * time.Millisecond)
			defer again.Stop()
			for {
				verdicts[i] = bothWays(ctx, t)
				if verdicts[i].Status == model.Up {
					return
				}
				select {
				case <-again.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

// bothWays makes a check as a director does, by check.Poll if that can make it,
// and as a call. The verdicts have to agree.
func bothWays(ctx context.Context, t model.Target) model.Verdict {
	v := check.Perform(context.Background(), check.For(t), t)
	if !check.Pollable(&t) {
		return v
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan model.Verdict, 1)
	p, err := check.NewPoll(ctx, func(list []check.Ended) { ended <- list[0].Verdict })
	if err != nil {
		return model.Verdict{Reason: err.Error()}
	}
	p.Start(nil, &t)
	if polled := <-ended; polled.Status != v.Status || polled.Reason != v.Reason {
		return model.Verdict{Reason: fmt.Sprintf("as a call %v, polled %v", v, polled)}
	}
	return v
}

// pki are certificates of every kind that a server may show.
type pki struct {
	ca    []byte // PEM
	files map[string]lab.File
}

const checkedAddress = "10.1.0.20"

func newPKI(t *testing.T) pki {
	t.Helper()
	p := pki{files: map[string]lab.File{}}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	issue := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		if signer == nil {
			signer = key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		must(err)
		return der, key
	}
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, caKey := issue(authority, authority, nil)
	p.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for i, name := range []string{"good", "expired", "selfsigned", "wrongname"} {
		c := &x509.Certificate{SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"www.example.test"}, IPAddresses: []net.IP{net.ParseIP(checkedAddress)}}
		parent, signer := authority, caKey
		switch name {
		case "expired":
			c.NotAfter = now.Add(-time.Hour)
		case "selfsigned":
			parent, signer = c, nil
		case "wrongname":
			c.DNSNames, c.IPAddresses = []string{"other.example.test"}, nil
		}
		der, key := issue(c, parent, signer)
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		must(err)
		p.files["/etc/check/"+name+".crt"] = lab.File{Data: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
		p.files["/etc/check/"+name+".key"] = lab.File{Data: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})}
	}
	return p
}

// checkedServer is a server, its configuration in /etc/check, and how it is
// run. It listens on checkedAddress.
type checkedServer struct {
	name  string
	files map[string]string
	run   string // by sh, which it replaces
}

var checkedServers = []checkedServer{
	{"unbound", map[string]string{"unbound.conf": `server:
  interface: 10.1.0.20
  access-control: 10.1.0.0/24 allow
  do-daemonize: no
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  local-zone: "example.test." static
  local-data: "host.example.test. IN A 192.0.2.80"
  local-data: "host.example.test. IN A 192.0.2.81"
  local-data: "six.example.test. IN AAAA 2001:db8::5"
  local-data-ptr: "192.0.2.80 host.example.test"
  local-data-ptr: "2001:db8::5 six.example.test"
` + manyRecords()}, "exec unbound -d -c /etc/check/unbound.conf"},

	{"slapd", map[string]string{"slapd.conf": `include /etc/ldap/schema/core.schema
pidfile /run/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
TLSCertificateFile /etc/check/selfsigned.crt
TLSCertificateKeyFile /etc/check/selfsigned.key
database mdb
maxsize 10485760
suffix "dc=example,dc=test"
rootdn "cn=admin,dc=example,dc=test"
rootpw pw
directory /var/lib/ldap-check
`, "example.ldif": "dn: dc=example,dc=test\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n"},
		`mkdir /var/lib/ldap-check && slapadd -f /etc/check/slapd.conf -l /etc/check/example.ldif &&
exec slapd -d none -f /etc/check/slapd.conf -h "ldap://10.1.0.20/ ldaps://10.1.0.20/"`},

	// It insists on a Message-Authenticator in each request.
	{"freeradius", map[string]string{"radiusd.conf": `prefix = /usr
libdir = /usr/lib/freeradius
logdir = /var/log
run_dir = /run
raddbdir = /etc/check
security { reject_delay = 0 }
client director {
  ipaddr = 10.1.0.1
  secret = s3cret
  require_message_authenticator = yes
}
modules {
  files { usersfile = ${raddbdir}/users }
  pap { }
}
server default {
  listen {
    type = auth
    ipaddr = 10.1.0.20
    port = 1812
  }
  authorize {
    files
    pap
  }
  authenticate {
    Auth-Type PAP {
      pap
    }
  }
}
`, "users": "bob Cleartext-Password := \"hello\"\n", "dictionary": ""}, "exec freeradius -f -l stdout -d /etc/check"},

	{"mariadbd", map[string]string{"init.sql": `CREATE DATABASE shop;
CREATE TABLE shop.article (id INT);
INSERT INTO shop.article VALUES (1), (2);
CREATE TABLE shop.nothing (id INT);
CREATE USER 'probe'@'%' IDENTIFIED BY 'pw';
GRANT SELECT ON shop.* TO 'probe'@'%';
`}, `exec mariadbd --user=mysql --bind-address=10.1.0.20 --socket=/tmp/mysql.sock --pid-file=/tmp/mysql.pid \
  --skip-name-resolve --innodb-flush-log-at-trx-commit=0 --init-file=/etc/check/init.sql`},

	{"postgres", map[string]string{"pg_hba.conf": "host all all 10.1.0.0/24 scram-sha-256\n",
		"probe.sql": "CREATE ROLE probe LOGIN PASSWORD 'pw'\n"},
		`for f in crt key; do install -o postgres -m 600 /etc/check/wrongname.$f /var/lib/postgresql/tls.$f; done
p() { setpriv --reuid=postgres --regid=postgres --init-groups /usr/lib/postgresql/15/bin/postgres "$@"; }
p --single -D /etc/postgresql/15/main -c external_pid_file=/tmp/single.pid -c ssl=off postgres </etc/check/probe.sql >/dev/null &&
exec setpriv --reuid=postgres --regid=postgres --init-groups /usr/lib/postgresql/15/bin/postgres -D /etc/postgresql/15/main \
  -c external_pid_file=/tmp/postgres.pid -c listen_addresses=10.1.0.20 -c unix_socket_directories=/tmp -c hba_file=/etc/check/pg_hba.conf -c fsync=off \
  -c ssl=on -c ssl_cert_file=/var/lib/postgresql/tls.crt -c ssl_key_file=/var/lib/postgresql/tls.key`},

	{"nginx", map[string]string{"nginx.conf": nginxConf}, `exec nginx -c /etc/check/nginx.conf`},

	{"squid", map[string]string{"squid.conf": `http_port 10.1.0.20:3128
visible_hostname proxy
http_access allow all
cache deny all
access_log none
pid_filename none
pinger_enable off
max_filedescriptors 1024
`}, "exec squid -N -f /etc/check/squid.conf"},
}

func manyRecords() string {
	var b strings.Builder
	for i := range 100 {
		fmt.Fprintf(&b, "  local-data: \"many.example.test. IN A 192.0.2.%d\"\n", i)
	}
	return b.String()
}

const nginxConf = `daemon off;
pid /tmp/nginx.pid;
error_log stderr;
events { }
http {
  access_log off;
  default_type text/plain;
  server {
    listen 10.1.0.20:80;
    location = /alive { return 200 "I am alive\n"; }
    location = /moved { return 302 https://10.1.0.20/alive; }
    location = /version { return 200 $server_protocol; }
    location / { return 404; }
  }
  server {
    listen 10.1.0.20:81 http2;
    location / { return 200 $server_protocol; }
  }
  server {
    listen 10.1.0.20:443 ssl http2;
    ssl_certificate /etc/check/good.crt;
    ssl_certificate_key /etc/check/good.key;
    location = /alive { return 200 "I am alive\n"; }
    location / { return 200 "$server_protocol sni=$ssl_server_name."; }
  }
  server {
    listen 10.1.0.20:444 ssl;
    ssl_certificate /etc/check/expired.crt;
    ssl_certificate_key /etc/check/expired.key;
  }
  server {
    listen 10.1.0.20:445 ssl;
    ssl_certificate /etc/check/selfsigned.crt;
    ssl_certificate_key /etc/check/selfsigned.key;
    location / { return 200; }
  }
  server {
    listen 10.1.0.20:446 ssl;
    ssl_certificate /etc/check/wrongname.crt;
    ssl_certificate_key /etc/check/wrongname.key;
    location / { return 200; }
  }
  server {
    listen 10.1.0.20:447 ssl default_server;
    ssl_reject_handshake on;
  }
  server {
    listen 10.1.0.20:447 ssl;
    server_name www.example.test;
    ssl_certificate /etc/check/good.crt;
    ssl_certificate_key /etc/check/good.key;
    location / { return 200; }
  }
}
`

// checkedOn is a negotiate check of a server of the node, and its change.
func checkedOn(application string, port uint16, change ...func(*model.Target)) model.Target {
	t := model.Target{Kind: model.CheckNegotiate, Application: application, Proto: model.TCP, Request: "/", Method: "GET",
		Addr:         netip.AddrPortFrom(netip.MustParseAddr(checkedAddress), port),
		CheckTimeout: 20 * time.Second, NegotiateTimeout: 20 * time.Second}
	for _, f := range change {
		f(&t)
	}
	return t
}

// Every protocol of the binary, database and directory kind, and HTTP, against
// a real server of its kind from Debian.
func TestChecksAgainstRealServers(t *testing.T) {
	tree := debianTree(t, "freeradius", "mariadb-server", "nginx-light", "postgresql", "slapd", "squid", "unbound")
	checkRealServers(t, tree, checkedServers, realServerCases)
}

// checkRealServers runs the servers on one node and makes the checks on
// another: when all servers run, and when none does.
func checkRealServers(t *testing.T, tree string, checked []checkedServer, cases []realServerCase) {
	t.Helper()
	keys := newPKI(t)
	files := keys.files
	for _, s := range checked {
		for name, text := range s.files {
			files["/etc/check/"+name] = lab.File{Data: []byte(text)}
		}
	}
	l, err := lab.Start(t.Context(), lab.Options{Topology: lab.Topology{Bridges: []string{"lan"}, Machines: []lab.Machine{
		{Name: "director", Role: lab.RoleClient, Interfaces: []lab.Interface{{Name: "eth0", Bridge: "lan", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}}},
			Files: map[string]lab.File{"/etc/check/ca.pem": {Data: keys.ca}, "/etc/resolv.conf": {}}},
		{Name: "servers", Role: lab.RoleRealServer, Interfaces: []lab.Interface{{Name: "eth0", Bridge: "lan", Addresses: []netip.Prefix{netip.MustParsePrefix(checkedAddress + "/24")}}},
			Root: tree, Files: files},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })

	type server struct {
		name string
		cmd  *lab.Cmd
		said bytes.Buffer
	}
	var servers []*server
	for _, s := range checked {
		run := &server{name: s.name, cmd: l.Node("servers").Command(t.Context(), "sh", "-c", s.run)}
		run.cmd.Stdout, run.cmd.Stderr = &run.said, &run.said
		if err := run.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		servers = append(servers, run)
	}
	stop := sync.OnceFunc(func() {
		// Some servers have processes in groups of their own.
		_ = l.Node("servers").Run(context.Background(), "sh", "-c", "kill -KILL -1")
		for _, s := range servers {
			_ = s.cmd.Wait()
		}
	})
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			for _, s := range servers {
				t.Logf("%s said:\n%s", s.name, s.said.String())
			}
		}
	})
	verdicts := func(patience string, targets []model.Target) []model.Verdict {
		t.Helper()
		in, err := json.Marshal(targets)
		if err != nil {
			t.Fatal(err)
		}
		var out, said bytes.Buffer
		cmd := l.Node("director").Command(t.Context(), "batuta", "lab", "check", patience)
		cmd.Env = []string{"SSL_CERT_FILE=/etc/check/ca.pem", "SSL_CERT_DIR=/nowhere"}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &said
		var got []model.Verdict
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != len(targets) {
			t.Fatalf("%v: %d verdicts of %d: %s", err, len(got), len(targets), out.String())
		}
		return got
	}

	var up []model.Target
	for _, c := range cases {
		if c.status == model.Up {
			up = append(up, c.target)
		}
	}
	began := time.Now()
	for _, v := range verdicts("90s", up) {
		if v.Status != model.Up {
			t.Errorf("a server did not come up: %v", v)
		}
	}
	t.Logf("all servers answer after %v", time.Since(began).Round(100*time.Millisecond))

	var all []model.Target
	for _, c := range cases {
		all = append(all, c.target)
	}
	for i, v := range verdicts("0s", all) {
		c := cases[i]
		if v.Status != c.status || !strings.Contains(v.Reason, c.reason) {
			t.Errorf("%s %s:\n got %v\nwant %v: ...%s...", c.target.Application, c.name, v, c.status, c.reason)
		}
	}
	stop()
	for i, v := range verdicts("0s", up) {
		if v.Status != model.Down || !strings.Contains(v.Reason, "refused") {
			t.Errorf("%s, stopped: %v, want down: connection refused", up[i].Application, v)
		}
	}
}
