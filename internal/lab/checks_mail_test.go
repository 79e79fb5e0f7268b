package lab_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// mailServers are the servers of the protocols that are spoken in lines.
var mailServers = []checkedServer{
	{"postfix", nil, `set -e
postconf -e inet_interfaces=10.1.0.20 inet_protocols=ipv4 myhostname=mail.example.test compatibility_level=3.6 maillog_file=/dev/stdout
postconf -M submission/inet="submission inet n - n - - smtpd"
postconf -M 26/inet="26 inet n - n - - smtpd -o smtpd_delay_reject=no -o smtpd_client_restrictions=reject"
postconf -F "*/*/chroot = n"
exec postfix start-fg`},

	{"dovecot", map[string]string{"dovecot-good.conf": dovecotConf("good", 0, "plain cram-md5 apop")}, "exec dovecot -F -c /etc/check/dovecot-good.conf"},
	{"dovecot with an expired certificate", map[string]string{"dovecot-expired.conf": dovecotConf("expired", 1000, "plain")}, "exec dovecot -F -c /etc/check/dovecot-expired.conf"},
	{"dovecot with a self-signed certificate", map[string]string{"dovecot-selfsigned.conf": dovecotConf("selfsigned", 2000, "plain cram-md5")}, "exec dovecot -F -c /etc/check/dovecot-selfsigned.conf"},
	{"dovecot with another name's certificate", map[string]string{"dovecot-wrongname.conf": dovecotConf("wrongname", 3000, "plain")}, "exec dovecot -F -c /etc/check/dovecot-wrongname.conf"},

	{"vsftpd", map[string]string{"vsftpd.conf": vsftpdConf(21), "status.txt": "all good\n"}, `useradd -d /var -s /bin/sh joe && echo joe:pw | chpasswd &&
mkdir -p /run/vsftpd/empty /var/ftp && cp /etc/check/status.txt /var/ftp/ && exec vsftpd /etc/check/vsftpd.conf`},
	{"vsftpd, passive data only", map[string]string{"vsftpd-passive.conf": vsftpdConf(2121) + "port_enable=NO\n"},
		"mkdir -p /run/vsftpd/empty; exec vsftpd /etc/check/vsftpd-passive.conf"},

	{"kamailio", map[string]string{"kamailio.cfg": `debug=2
log_stderror=yes
children=1
listen=udp:10.1.0.20:5060
listen=tcp:10.1.0.20:5060
loadmodule "sl.so"
loadmodule "pv.so"
request_route {
  if ($rU == "closed") { sl_send_reply("503", "Closed for maintenance"); exit; }
  sl_send_reply("200", "OK");
}
`}, "exec kamailio -DD -E -f /etc/check/kamailio.cfg"},

	// Leafnode, which refuses to serve under a name that cannot be its own,
	// and inetd's own services, for simpletcp.
	{"inetd", map[string]string{"leafnode.conf": "hostname = news.batuta-ha.org\nserver = nowhere.example.test\n",
		"refusing.conf": "hostname = news.example.test\nserver = nowhere.example.test\n",
		"refusing.sh":   "mount --bind /etc/check/refusing.conf /etc/news/leafnode/config && exec setpriv --reuid=news --regid=news --clear-groups /usr/sbin/leafnode\n",
		"inetd.conf": `10.1.0.20:119 stream tcp nowait news /usr/sbin/leafnode leafnode
10.1.0.20:120 stream tcp nowait root /usr/bin/unshare unshare -m sh /etc/check/refusing.sh
10.1.0.20:echo stream tcp nowait root internal
10.1.0.20:echo dgram udp wait root internal
10.1.0.20:discard stream tcp nowait root internal
10.1.0.20:chargen stream tcp nowait root internal
`}, "cp /etc/check/leafnode.conf /etc/news/leafnode/config && exec inetd -i /etc/check/inetd.conf"},
}

// dovecotConf is a dovecot that knows everybody by the password pw, on the
// usual ports plus offset.
func dovecotConf(certificate string, offset int, mechanisms string) string {
	listener := func(service, name string, port int) string {
		return fmt.Sprintf("service %s {\n  inet_listener %s {\n    port = %d\n  }\n}\n", service, name, port+offset)
	}
	return strings.NewReplacer("CERT", certificate, "MECHANISMS", mechanisms).Replace(`protocols = imap pop3
listen = 10.1.0.20
base_dir = /run/dovecot-CERT
log_path = /dev/stderr
ssl = yes
ssl_cert = </etc/check/CERT.crt
ssl_key = </etc/check/CERT.key
disable_plaintext_auth = no
auth_mechanisms = MECHANISMS
auth_failure_delay = 0
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
first_valid_uid = 1
mail_location = maildir:/tmp/mail-CERT/%u
passdb {
  driver = static
  args = password=pw
}
userdb {
  driver = static
  args = uid=mail gid=mail home=/tmp/mail-CERT/%u
}
`) + listener("imap-login", "imap", 143) + listener("imap-login", "imaps", 993) + listener("pop3-login", "pop3", 110) + listener("pop3-login", "pop3s", 995)
}

func vsftpdConf(port int) string {
	return fmt.Sprintf(`listen=YES
listen_ipv6=NO
listen_address=10.1.0.20
listen_port=%d
background=NO
anonymous_enable=YES
anon_root=/var/ftp
local_enable=YES
pam_service_name=vsftpd
secure_chroot_dir=/run/vsftpd/empty
max_login_fails=1
delay_failed_login=0
`, port)
}

// mailCases are what each of mailServers is asked, and what its answer means.
var mailCases = []realServerCase{
	{"fine", checkedOn("smtp", 25), model.Up, "220 mail.example.test ESMTP Postfix"},
	{"fine", checkedOn("submission", 587), model.Up, "220 mail.example.test ESMTP Postfix"},
	{"turns us away", checkedOn("smtp", 26), model.Down, "greeting: 554 5.7.1"},
	{"of a POP server", checkedOn("smtp", 110), model.Down, `greeting: not an answer: "+OK`},

	{"no login", checkedOn("pop", 110), model.Up, "+OK Dovecot"},
	{"APOP", checkedOn("pop", 110, as("u", "pw")), model.Up, "logged in"},
	{"CRAM-MD5", checkedOn("pop", 2110, as("u", "pw")), model.Up, "logged in"},
	{"USER and PASS", checkedOn("pop", 1110, as("u", "pw")), model.Up, "logged in"},
	{"wrong password", checkedOn("pop", 110, as("u", "no")), model.Down, "PASS: -ERR [AUTH] Authentication failed."},
	{"wrong password, USER and PASS only", checkedOn("pop", 1110, as("u", "no")), model.Down, "PASS: -ERR [AUTH] Authentication failed."},
	{"of an IMAP server", checkedOn("pop", 143), model.Down, `greeting: not an answer: "* OK`},
	{"good", checkedOn("pops", 995, as("u", "pw")), model.Up, "logged in"},
	{"wrong password", checkedOn("pops", 995, as("u", "no")), model.Down, "PASS: -ERR"},
	{"expired", checkedOn("pops", 1995), model.Down, "TLS: "},
	{"self-signed", checkedOn("pops", 2995), model.Down, "unknown authority"},
	{"wrong name", checkedOn("pops", 3995), model.Down, "doesn't contain any IP SANs"},
	{"wrong name, chain verified", checkedOn("pops", 3995, as("u", "pw"), verify(model.VerifyChain)), model.Up, "logged in"},
	{"plain POP on the port", checkedOn("pops", 110), model.Down, "TLS: "},

	{"no login", checkedOn("imap", 143), model.Up, "* OK [CAPABILITY IMAP4rev1"},
	{"logs in", checkedOn("imap", 143, as("u", "pw")), model.Up, "logged in"},
	{"wrong password", checkedOn("imap", 143, as("u", "no")), model.Down, "LOGIN: NO [AUTHENTICATIONFAILED] Authentication failed."},
	{"of a mail exchanger", checkedOn("imap", 25), model.Down, `greeting: "220 mail.example.test`},
	{"good", checkedOn("imaps", 993, as("u", "pw")), model.Up, "logged in"},
	{"good, by its name", checkedOn("imaps", 993, serverName("www.example.test")), model.Up, "* OK"},
	{"wrong password", checkedOn("imaps", 993, as("u", "no")), model.Down, "LOGIN: NO [AUTHENTICATIONFAILED]"},
	{"expired", checkedOn("imaps", 1993), model.Down, "expired"},
	{"self-signed", checkedOn("imaps", 2993), model.Down, "unknown authority"},
	{"self-signed, nothing verified", checkedOn("imaps", 2993, as("u", "pw"), verify(model.VerifyNothing)), model.Up, "logged in"},
	{"wrong name", checkedOn("imaps", 3993), model.Down, "doesn't contain any IP SANs"},
	{"wrong name, which is told", checkedOn("imaps", 3993, serverName("other.example.test")), model.Up, "* OK"},

	{"a file that matches", checkedOn("ftp", 21, asking("status.txt"), wants("^all good$")), model.Up, "9 bytes of /status.txt"},
	{"a file that does not", checkedOn("ftp", 21, asking("status.txt"), wants("bad")), model.Down, `receive="bad" is not in the file`},
	{"no such file", checkedOn("ftp", 21, asking("nothing.txt")), model.Down, "RETR: 550 Failed to open file."},
	{"logs in", checkedOn("ftp", 21, as("joe", "pw"), asking("var/ftp/status.txt"), wants("good")), model.Up, "9 bytes"},
	{"wrong password", checkedOn("ftp", 21, as("joe", "no"), asking("var/ftp/status.txt"), wants("good")), model.Down, "PASS: 530 Login incorrect."},
	{"passive data only", checkedOn("ftp", 2121, asking("status.txt"), wants("good")), model.Up, "9 bytes"},

	{"by udp", checkedOn("sip", 5060, byUDP, as("ldirectord@director", "")), model.Up, "SIP/2.0 200 OK"},
	{"by tcp", checkedOn("sip", 5060, as("ldirectord@director", "")), model.Up, "SIP/2.0 200 OK"},
	{"no login", checkedOn("sip", 5060, byUDP), model.Up, "SIP/2.0 200 OK"},
	{"refused", checkedOn("sip", 5060, byUDP, as("closed@director", "")), model.Down, "SIP/2.0 503 Closed for maintenance"},
	{"refused by tcp", checkedOn("sip", 5060, as("closed@director", "")), model.Down, "SIP/2.0 503 Closed for maintenance"},

	{"fine", checkedOn("nntp", 119), model.Up, "200 Leafnode NNTP Daemon"},
	{"refuses", checkedOn("nntp", 120), model.Down, `greeting: "503 Leafnode must have`},
	{"of a POP server", checkedOn("nntp", 110), model.Down, `greeting: "+OK Dovecot`},

	{"echo", checkedOn("simpletcp", 7, asking(`ping\npong`), wants("^pong$")), model.Up, "pong"},
	{"echo of something else", checkedOn("simpletcp", 7, asking("ping"), wants("pong")), model.Down, `is in no line, the last one is "ping"`},
	{"echo by udp", checkedOn("simpletcp", 7, byUDP, asking("ping"), wants("^ping$")), model.Up, "ping"},
	{"discard says nothing", checkedOn("simpletcp", 9, asking("ping")), model.Down, "closed without an answer"},
	{"characters without end", checkedOn("simpletcp", 19, wants("no such line")), model.Down, ""},

	{"SMTP", checkedOn("dialogue", 25, speaks("expect", "^220 ", "send", "EHLO check.example.test\r\n", "expect", "^250 ", "send", "QUIT\r\n", "expect", "^221 ")), model.Up, "221 "},
	{"SMTP that refuses", checkedOn("dialogue", 26, speaks("expect-not", "^5")), model.Down, `step 1, expect-not: "^5" is in the answer "554 5.7.1`},
	{"IMAP, goes over to TLS, good", checkedOn("dialogue", 143, imapByTLS), model.Up, "2 OK"},
	{"IMAP, goes over to TLS, good by its name", checkedOn("dialogue", 143, imapByTLS, verify(model.VerifyName), serverName("www.example.test")), model.Up, "2 OK"},
	{"IMAP, goes over to TLS, expired", checkedOn("dialogue", 1143, imapByTLS), model.Down, "step 4, starttls: "},
	{"IMAP, goes over to TLS, self-signed", checkedOn("dialogue", 2143, imapByTLS), model.Down, "unknown authority"},
	{"IMAP, goes over to TLS, self-signed, nothing verified", checkedOn("dialogue", 2143, imapByTLS, verify(model.VerifyNothing)), model.Up, "2 OK"},
	{"IMAP, goes over to TLS, another name", checkedOn("dialogue", 3143, imapByTLS, verify(model.VerifyName)), model.Down, "step 4, starttls: "},
	{"POP by TLS from its first byte", checkedOn("dialogue", 995, func(t *model.Target) { t.TLS = true }, speaks("expect", `^\+OK Dovecot`, "close", "")), model.Up, "+OK Dovecot"},
}

// imapByTLS is a dialogue with an IMAP server that goes over to TLS in its middle.
var imapByTLS = speaks("expect", `^\* OK`, "send", "1 STARTTLS\r\n", "expect", "^1 OK", "starttls", "", "send", "2 NOOP\r\n", "expect", "^2 OK")

// speaks writes a dialogue out: kinds of steps, each with its text.
func speaks(words ...string) func(*model.Target) {
	kinds := map[string]model.StepKind{"send": model.StepSend, "expect": model.StepExpect, "expect-not": model.StepExpectNot,
		"starttls": model.StepStartTLS, "close": model.StepClose}
	var steps []model.Step
	for i := 0; i < len(words); i += 2 {
		steps = append(steps, model.Step{Kind: kinds[words[i]], Text: words[i+1]})
	}
	return func(t *model.Target) { t.Steps = model.StepsText(steps) }
}

// Every protocol that is spoken in lines against a real server of its kind
// from Debian.
func TestLineChecksAgainstRealServers(t *testing.T) {
	checkRealServers(t, debianTree(t, "dovecot-imapd", "dovecot-pop3d", "kamailio", "leafnode", "openbsd-inetd", "postfix", "vsftpd"), mailServers, mailCases)
}
