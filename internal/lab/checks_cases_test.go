package lab_test

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

func asking(request string) func(*model.Target) {
	return func(t *model.Target) { t.Request = "/" + request }
}
func wants(receive string) func(*model.Target) { return func(t *model.Target) { t.Receive = receive } }
func byUDP(t *model.Target)                    { t.Proto = model.UDP }
func record(kind string) func(*model.Target)   { return func(t *model.Target) { t.RecordType = kind } }
func secret(s string) func(*model.Target)      { return func(t *model.Target) { t.Secret = s } }
func database(name string) func(*model.Target) { return func(t *model.Target) { t.Database = name } }
func serverName(n string) func(*model.Target)  { return func(t *model.Target) { t.ServerName = n } }
func http2(t *model.Target)                    { t.HTTP2 = true }
func impatient(t *model.Target)                { t.CheckTimeout = 500 * time.Millisecond }
func as(login, password string) func(*model.Target) {
	return func(t *model.Target) { t.Login, t.Password = login, password }
}
func verify(v model.TLSVerify) func(*model.Target) {
	return func(t *model.Target) { t.TLSVerify = v }
}

// realServerCase is a check and what it finds while all servers run.
type realServerCase struct {
	name   string
	target model.Target
	status model.Status
	reason string // a part of it
}

// realServerCases are what each server of checkedServers is asked, and what
// its answer means.
var realServerCases = []realServerCase{
	{"A by udp", checkedOn("dns", 53, byUDP, asking("host.example.test"), wants("192.0.2.81")), model.Up, "192.0.2.80"},
	{"A by tcp", checkedOn("dns", 53, asking("host.example.test"), wants("^192")), model.Up, "192.0.2.81"},
	{"another address", checkedOn("dns", 53, byUDP, asking("host.example.test"), wants("198.51")), model.Down, `receive="198.51" is not in the answer: 192.0.2.8`},
	{"without receive", checkedOn("dns", 53, byUDP, asking("host.example.test")), model.Down, "without receive is never up"},
	{"PTR", checkedOn("dns", 53, byUDP, asking("192.0.2.80"), wants(`^host\.example\.test$`)), model.Up, "answered with host.example.test"},
	{"PTR of IPv6", checkedOn("dns", 53, byUDP, asking("2001:db8::5"), wants("^six")), model.Up, "answered with six.example.test"},
	{"only an AAAA record there", checkedOn("dns", 53, byUDP, asking("six.example.test"), wants("2001")), model.Down, "no A record"},
	{"AAAA", checkedOn("dns", 53, byUDP, asking("six.example.test"), wants("2001:db8::5"), record("AAAA")), model.Up, "2001:db8::5"},
	{"too long for udp", checkedOn("dns", 53, byUDP, asking("many.example.test"), wants("192.0.2.99")), model.Up, "and 97 more"},
	{"no such name", checkedOn("dns", 53, byUDP, asking("nobody.example.test"), wants(".")), model.Down, "NXDOMAIN for nobody.example.test."},

	{"anonymous", checkedOn("ldap", 389, asking("dc=example,dc=test"), wants("^dc=example")), model.Up, `found "dc=example,dc=test"`},
	{"bound", checkedOn("ldap", 389, asking("dc=example,dc=test"), as("cn=admin,dc=example,dc=test", "pw")), model.Up, "found"},
	{"wrong password", checkedOn("ldap", 389, asking("dc=example,dc=test"), as("cn=admin,dc=example,dc=test", "no")), model.Down, "bind as cn=admin,dc=example,dc=test: Invalid Credentials (49)"},
	{"no such entry", checkedOn("ldap", 389, asking("dc=example,dc=org")), model.Down, `search "dc=example,dc=org": No Such Object (32)`},
	{"another name", checkedOn("ldap", 389, asking("dc=example,dc=test"), wants("dc=other")), model.Down, `receive="dc=other" is not in the entry's DN`},
	{"plain ldap on the tls port", checkedOn("ldap", 636, asking("dc=example,dc=test")), model.Down, "closed"},
	{"self-signed", checkedOn("ldaps", 636, asking("dc=example,dc=test")), model.Up, "found"},
	{"self-signed, chain verified", checkedOn("ldaps", 636, asking("dc=example,dc=test"), verify(model.VerifyChain)), model.Down, "unknown authority"},

	{"accepted", checkedOn("radius", 1812, byUDP, as("bob", "hello"), secret("s3cret")), model.Up, "Access-Accept"},
	{"wrong password", checkedOn("radius", 1812, byUDP, as("bob", "no"), secret("s3cret")), model.Down, "Access-Reject"},
	{"wrong secret: the server does not answer", checkedOn("radius", 1812, byUDP, as("bob", "hello"), secret("other"), impatient), model.Down, "no answer within 500ms"},

	{"a row", checkedOn("mysql", 3306, as("probe", "pw"), database("shop"), asking("SELECT id FROM article")), model.Up, "the query has a row"},
	{"no row", checkedOn("mysql", 3306, as("probe", "pw"), database("shop"), asking("SELECT id FROM nothing")), model.Down, "the query has no row"},
	{"no such table", checkedOn("mysql", 3306, as("probe", "pw"), database("shop"), asking("SELECT 1 FROM x")), model.Down, "Table 'shop.x' doesn't exist"},
	{"no such database", checkedOn("mysql", 3306, as("probe", "pw"), database("x"), asking("SELECT 1")), model.Down, "Access denied for user 'probe'@'%' to database 'x'"},
	{"wrong password", checkedOn("mysql", 3306, as("probe", "no"), database("shop"), asking("SELECT 1")), model.Down, "Access denied for user 'probe'@'10.1.0.1'"},
	{"no login", checkedOn("mysql", 3306, asking("SELECT 1")), model.Down, "needs a user"},

	{"a row, by tls with any certificate", checkedOn("pgsql", 5432, as("probe", "pw"), database("postgres"), asking("SELECT 1 FROM pg_stat_ssl WHERE ssl AND pid = pg_backend_pid()")), model.Up, "the query has a row"},
	{"no row", checkedOn("pgsql", 5432, as("probe", "pw"), database("postgres"), asking("SELECT 1 WHERE false")), model.Down, "the query has no row"},
	{"no such table", checkedOn("pgsql", 5432, as("probe", "pw"), database("postgres"), asking("SELECT 1 FROM x")), model.Down, `relation "x" does not exist (42P01)`},
	{"no such database", checkedOn("pgsql", 5432, as("probe", "pw"), database("x"), asking("SELECT 1")), model.Down, `database "x" does not exist (3D000)`},
	{"wrong password", checkedOn("pgsql", 5432, as("probe", "no"), database("postgres"), asking("SELECT 1")), model.Down, `password authentication failed for user "probe" (28P01)`},
	{"no request", checkedOn("pgsql", 5432, as("probe", "pw"), database("postgres")), model.Down, "needs a query"},
	{"of a web server", checkedOn("pgsql", 80, as("probe", "pw"), database("postgres"), asking("SELECT 1")), model.Down, "PostgreSQL answer"},

	{"a page", checkedOn("http", 80, asking("alive"), wants("alive$")), model.Up, "200 OK"},
	{"no page", checkedOn("http", 80, asking("nothing")), model.Down, "404 Not Found"},
	{"moved to https", checkedOn("http", 80, asking("moved"), wants("alive")), model.Up, "200 OK"},
	{"HTTP/2 with prior knowledge", checkedOn("http", 81, wants("^HTTP/2.0$"), http2), model.Up, "200"},
	{"HTTP/2 of a server that does not know it", checkedOn("http", 80, asking("version"), http2), model.Down, "HTTP/2"},

	{"good, no name sent, HTTP/1.1", checkedOn("https", 443, wants(`^HTTP/1\.1 sni=\.$`)), model.Up, "200 OK"},
	{"HTTP/2", checkedOn("https", 443, wants(`^HTTP/2\.0 sni=\.$`), http2), model.Up, "200"},
	{"HTTP/2 and a name", checkedOn("https", 443, wants(`^HTTP/2\.0 sni=www\.example\.test\.$`), http2, serverName("www.example.test")), model.Up, "200"},
	{"HTTP/2 offered, 1.1 chosen", checkedOn("https", 446, http2), model.Up, "200 OK"},
	{"good, address verified", checkedOn("https", 443, verify(model.VerifyName)), model.Up, "200 OK"},
	{"good, name verified", checkedOn("https", 443, verify(model.VerifyName), serverName("www.example.test")), model.Up, "200 OK"},
	{"expired", checkedOn("https", 444), model.Down, "expired"},
	{"self-signed", checkedOn("https", 445), model.Down, "unknown authority"},
	{"self-signed, nothing verified", checkedOn("https", 445, verify(model.VerifyNothing)), model.Up, "200 OK"},
	{"wrong name", checkedOn("https", 446), model.Up, "200 OK"},
	{"wrong name, address verified", checkedOn("https", 446, verify(model.VerifyName)), model.Down, "doesn't contain any IP SANs"},
	{"wrong name, name verified", checkedOn("https", 446, verify(model.VerifyName), serverName("www.example.test")), model.Down, "not www.example.test"},
	{"a server that insists on a name", checkedOn("https", 447), model.Down, "unrecognized name"},
	{"and gets it", checkedOn("https", 447, serverName("www.example.test")), model.Up, "200 OK"},

	{"a page", checkedOn("http_proxy", 3128, asking("http://10.1.0.20/alive"), wants("alive")), model.Up, "200 OK"},
	{"moved", checkedOn("http_proxy", 3128, asking("http://10.1.0.20/moved"), wants("alive")), model.Up, "200 OK"},
	{"no such origin", checkedOn("http_proxy", 3128, asking("http://10.1.0.20:9/")), model.Down, "503 Service Unavailable"},
	{"no absolute URL", checkedOn("http_proxy", 3128, asking("alive")), model.Down, "absolute http:// URL"},
}
