package config

import "slices"

// valueKind is what an attribute of the native file takes.
type valueKind uint8

// Kinds of values.
const (
	noValue       valueKind = iota
	textValue               // "text"; one of attribute.words where there are any
	numberValue             // a whole number from attribute.least to attribute.most
	flagValue               // true or false
	durationValue           // "1m30s", and "14d"
	listValue               // ["text", ...]; one of attribute.words each where there are any
	mapValue                // { name = "text", ... }
)

// attribute is one line of a block.
type attribute struct {
	name        string
	kind        valueKind
	words       []string
	least, most int
	types       []string // check: the types that look at it; nil: all
	otherwise   string   // what holds where it is not given, for the reference
	doc         string   // for the reference
}

// blockSpec is a kind of block. These tables are the whole grammar of the
// native file: reading, "did you mean" and the reference are made of them.
type blockSpec struct {
	name       string
	label      string // what stands behind the name, for the reference; "" for nothing
	many       bool   // may stand more than once beside each other
	doc        string
	attributes []attribute
	blocks     []*blockSpec
}

func (b *blockSpec) attribute(name string) *attribute {
	for i := range b.attributes {
		if b.attributes[i].name == name {
			return &b.attributes[i]
		}
	}
	return nil
}

func (b *blockSpec) block(name string) *blockSpec {
	for _, c := range b.blocks {
		if c.name == name {
			return c
		}
	}
	return nil
}

// words are all names that the block knows, for "did you mean".
func (b *blockSpec) words() []string {
	var out []string
	for _, a := range b.attributes {
		out = append(out, a.name)
	}
	for _, c := range b.blocks {
		out = append(out, c.name)
	}
	return out
}

// nativeTypes are the kinds of checks of the native file: what checktype and
// service are in ldirectord.cf, and dialogue.
var nativeTypes = append([]string{"connect", "dialogue", "external", "external-perl", "off", "on", "ping"}, serviceWords...)

// Types of checks that look at the same attributes.
var (
	httpTypes    = []string{"http", "https", "http_proxy"}
	tlsTypes     = []string{"https", "imaps", "pops", "ldaps", "dialogue"}
	loginTypes   = []string{"ftp", "imap", "imaps", "ldap", "ldaps", "mysql", "oracle", "pgsql", "pop", "pops", "radius", "sip"}
	requestTypes = []string{"dns", "ftp", "http", "http_proxy", "https", "ldap", "ldaps", "mysql", "pgsql", "oracle", "simpletcp"}
)

var tlsSpec = &blockSpec{
	name: "tls",
	doc:  "What is verified of the server's certificate. In a `dialogue` check the block means TLS from the first byte on, unless a step begins it.",
	attributes: []attribute{
		{name: "verify", kind: textValue, words: []string{"none", "chain", "name"}, otherwise: "what ldirectord does for the type: chain for https, name for imaps and pops, none for ldaps; chain for dialogue",
			doc: "`none`: any certificate will do. `chain`: it is signed by a known authority, and in its time. `name`: that, and it is issued for `server_name` or the address."},
		{name: "server_name", kind: textValue, otherwise: "none is sent", doc: "Name to send (SNI), and to verify instead of the address."},
		{name: "ca_file", kind: textValue, otherwise: "the machine's authorities", doc: "PEM file of the authorities to verify against. It is read again when it has changed."},
		{name: "expiry_warning", kind: durationValue, otherwise: "no warning", doc: "How long before the end of the certificate a warning comes, once a day: `\"14d\"`."},
	},
}

var stepSpec = &blockSpec{
	name: "step", many: true,
	doc: "One step of a `dialogue` check, in order. Each has exactly one of `send`, `expect`, `expect_not`, `starttls` and `close`.",
	attributes: []attribute{
		{name: "send", kind: textValue, doc: "Text to send, as it is: end a line with `\\r\\n`."},
		{name: "expect", kind: textValue, doc: "Regular expression. Lines are read until one matches; a line of up to 256 bytes that has not ended counts, too, for it may be a prompt."},
		{name: "expect_not", kind: textValue, doc: "Regular expression. One line is read, and must not match."},
		{name: "starttls", kind: flagValue, doc: "`true`: go on with TLS, by the `tls` block."},
		{name: "close", kind: flagValue, doc: "`true`: end the connection; nothing follows."},
		{name: "timeout", kind: durationValue, otherwise: "the check's `timeout`", doc: "Time for this step."},
	},
}

// checkAttributes are those that a real server may have otherwise than its service.
var checkAttributes = []attribute{
	{name: "type", kind: textValue, words: nativeTypes, otherwise: "what the service's port implies, else `connect` (`ping` for udp)",
		doc: "What is checked. `connect`: a TCP connection. `ping`: ICMP echo. A protocol (`http`, `dns`, `smtp`, ...): a request and its answer. " +
			"`dialogue`: the `step` blocks. `external`, `external-perl`: the `command`. `on`: always up. `off`: always down. `none`: always up."},
	{name: "timeout", kind: durationValue, otherwise: `"5s"`, doc: "Time for a whole check; for each step of a dialogue."},
	{name: "connect_timeout", kind: durationValue, otherwise: "`timeout`", doc: "Time for a connection where that is a check of its own (`connects`), for `ldap`, `ldaps` and `radius`, and for the agent."},
	{name: "port", kind: numberValue, least: 1, most: 65535, otherwise: "the real server's port", doc: "Port to check."},
	{name: "via", kind: textValue, words: []string{"real", "vip"}, otherwise: `"real"`,
		doc: "`vip`: the check goes to the virtual address and reaches the real server as a client's packets do: by its link address with `gate`, in a tunnel with `ipip`. " +
			"It finds real servers that lack the virtual address. It needs root and eBPF; not for ping and external checks."},
	{name: "connects", kind: numberValue, types: serviceWords, least: 1, most: maxNumber, otherwise: "none", doc: "Connections to make instead of the next checks, after each that succeeds: ldirectord's `checktype=N`."},
	{name: "tries", kind: numberValue, types: []string{"ping", "connect"}, least: 1, most: maxNumber, otherwise: "1", doc: "ping, connect: echo requests at most, of a `ping` check, and of a `connect` check of a udp service, which is one."},
	{name: "request", kind: textValue, types: requestTypes, otherwise: `"/"`, doc: "Path, name, query, file, URL: what is asked for, by the type."},
	{name: "receive", kind: textValue, types: matching, otherwise: "any answer", doc: "Regular expression that the answer must match."},
	{name: "method", kind: textValue, types: httpTypes, words: []string{"GET", "HEAD"}, otherwise: `"GET"`, doc: "http, https: request method."},
	{name: "host", kind: textValue, types: httpTypes, otherwise: "the real server's address", doc: "http, https: Host header."},
	{name: "headers", kind: mapValue, types: httpTypes, doc: "http, https: further request headers."},
	{name: "status", kind: listValue, types: httpTypes, otherwise: `["200-299"]`, doc: "http, https: status codes that are good, each a number or a range. A redirect that is among them is not followed."},
	{name: "http2", kind: flagValue, types: []string{"http", "https"}, otherwise: "false", doc: "https: HTTP/2 is offered (ALPN). http: HTTP/2 with prior knowledge."},
	{name: "weight_header", kind: textValue, types: httpTypes, doc: "http, https: response header that reports what the real server can take, in an agent's words."},
	{name: "record", kind: textValue, types: []string{"dns"}, words: []string{"A", "AAAA", "PTR"}, otherwise: "`PTR` where `request` is an address, else `A`", doc: "dns: record type to ask for."},
	{name: "login", kind: textValue, types: loginTypes, otherwise: "ftp: `anonymous`; sip: `ldirectord@NODE`", doc: "User name."},
	{name: "password", kind: textValue, types: loginTypes, otherwise: "ftp: `ldirectord@NODE`", doc: "Its password."},
	{name: "database", kind: textValue, types: []string{"mysql", "oracle", "pgsql"}, doc: "mysql, pgsql, oracle: name of the database."},
	{name: "secret", kind: textValue, types: []string{"radius"}, doc: "radius: what the server shares with this director."},
	{name: "command", kind: textValue, types: []string{"external", "external-perl"}, otherwise: `"/bin/true"`, doc: "external: program, with arguments; external-perl: Perl file."},
	{name: "agent_port", kind: numberValue, least: 1, most: 65535, otherwise: "no agent",
		doc: "TCP port of an agent on the real server that says, in a line, what it can take: `75%` of its weight, `up`, `drain`, `maint`, `down` (HAProxy's agent-check)."},
}

// paceAttributes hold for all real servers of a service.
var paceAttributes = []attribute{
	{name: "interval", kind: durationValue, otherwise: `"10s"`, doc: "From the start of one check to the start of the next."},
	{name: "jitter", kind: durationValue, otherwise: `"0s"`, doc: "By which `interval` is longer or shorter at most, by chance."},
	{name: "fall", kind: numberValue, least: 1, most: maxNumber, otherwise: "1", doc: "Failures in a row until a real server is down."},
	{name: "rise", kind: numberValue, least: 1, most: maxNumber, otherwise: "1", doc: "Successes in a row until a real server that was down is up."},
}

var checkSpec = &blockSpec{
	name: "check", doc: "How real servers are checked.",
	attributes: append(slices.Clone(checkAttributes), paceAttributes...),
	blocks:     []*blockSpec{tlsSpec, stepSpec},
}

var realSpec = &blockSpec{
	name: "real_server", label: `ADDRESS[:PORT] or FIRST-LAST[:PORT]`, many: true,
	doc: "A real server, or all from one IPv4 address to another.",
	attributes: []attribute{
		{name: "forward", kind: textValue, words: forwards, otherwise: "the service's", doc: "Forwarding method."},
		{name: "weight", kind: numberValue, most: maxWeight, otherwise: "1", doc: "Share of new connections; 0: none."},
		{name: "upper_threshold", kind: numberValue, most: maxNumber, otherwise: "no limit", doc: "Connections above which no new ones come."},
		{name: "lower_threshold", kind: numberValue, most: maxNumber, otherwise: "3/4 of `upper_threshold`", doc: "Connections below which new ones come again."},
	},
	blocks: []*blockSpec{{
		name: "check", doc: "What of the service's check is otherwise for this real server.",
		attributes: checkAttributes,
		blocks:     []*blockSpec{tlsSpec, stepSpec},
	}},
}

var fallbackSpec = &blockSpec{
	name: "fallback", label: `ADDRESS[:PORT] or none`,
	doc: "Server that stands in, with weight 1, while no real server is up. In `defaults` there may be one of each family; `none` in a service means none of them.",
	attributes: []attribute{
		{name: "forward", kind: textValue, words: forwards, otherwise: `"gate"`, doc: "Forwarding method."},
	},
}

var matchSpec = &blockSpec{
	name: "match", many: true,
	doc: "Packets that have the mark of a `fwm` service, for the eBPF plane: netfilter's marks come after it. The first block of the file that fits decides; " +
		"what is not given fits all. With IPVS the mark is netfilter's, and the block does nothing.",
	attributes: []attribute{
		{name: "protocol", kind: textValue, words: []string{"tcp", "udp", "sctp"}, otherwise: "all three", doc: "Transport."},
		{name: "destination", kind: textValue, doc: "Virtual address, or a network: `\"10.1.0.100\"`, `\"10.1.0.96/28\"`."},
		{name: "ports", kind: textValue, otherwise: "all", doc: "Destination ports: `\"80\"`, `\"5000-5100\"`."},
		{name: "source", kind: textValue, doc: "Clients: an address or a network."},
		{name: "interface", kind: textValue, doc: "Interface that the packets come in by."},
	},
}

var alertSpec = &blockSpec{
	name: "alert", doc: "Mail when a real server goes down or comes up.",
	attributes: []attribute{
		{name: "to", kind: textValue, doc: "Addresses, between commas."},
		{name: "from", kind: textValue, doc: "Sender."},
		{name: "relay", kind: textValue, otherwise: "the local mail program", doc: "SMTP host."},
		{name: "repeat", kind: durationValue, otherwise: `"0s"`, doc: "Time between two mails about a server that stays down; 0: one mail."},
		{name: "states", kind: listValue, words: alertStates, otherwise: `["all"]`, doc: "States of the director in which mails are sent."},
	},
}

var serviceAttributes = []attribute{
	{name: "scheduler", kind: textValue, otherwise: `"wrr"`, doc: "How new connections are spread: `rr`, `wrr`, `lc`, `wlc`, `sh`, `mh`, ..."},
	{name: "scheduler_flags", kind: textValue, doc: "Flags of the scheduler, as ipvsadm's `-b` takes them."},
	{name: "persistence", kind: durationValue, otherwise: "none", doc: "For how long after its last connection a client stays with its real server."},
	{name: "persistence_netmask", kind: textValue, otherwise: "single clients", doc: "Networks that stay together: `\"255.255.255.0\"` or `\"24\"`; a prefix length for IPv6."},
	{name: "one_packet", kind: flagValue, otherwise: "false", doc: "udp: each datagram is a connection of its own."},
	{name: "forward", kind: textValue, words: forwards, otherwise: `"masq"`, doc: "Forwarding method of real servers that have none of their own: `masq` (NAT), `gate` (direct routing), `ipip` (tunnel)."},
	{name: "quiescent", kind: flagValue, otherwise: "false", doc: "A real server that is down keeps its row with weight 0."},
	{name: "readd_quiescent", kind: flagValue, otherwise: "false", doc: "Such a row is put back where somebody else took it out."},
	{name: "clean_stop", kind: flagValue, otherwise: "true", doc: "The service leaves the table when the director stops."},
	{name: "fallback_command", kind: textValue, doc: "Command that hears `start` and `stop` with the service when the fallback begins and ceases to stand in."},
	{name: "monitor_file", kind: textValue, doc: "File that gets a line for each check."},
	{name: "panic_threshold", kind: numberValue, most: 100, otherwise: "0", doc: "Percent of real servers that must be up: with fewer, but not none, all are used as if they were. 0: never."},
	{name: "drain_deadline", kind: durationValue, otherwise: "never", doc: "After which `batuta drain` without `--deadline` cuts the connections that are left."},
}

var serviceBlocks = []*blockSpec{
	checkSpec,
	{
		name: "slow_start", doc: "The weight of a real server that comes back grows to its full size (Envoy's slow start).",
		attributes: []attribute{
			{name: "window", kind: durationValue, doc: "For how long."},
			{name: "min_weight_percent", kind: numberValue, least: 1, most: 100, otherwise: "10", doc: "Part that it begins with."},
			{name: "aggression", kind: numberValue, least: 1, most: 100, otherwise: "1", doc: "1: a straight line; more: faster at first."},
		},
	},
	{
		name: "flap_damping", doc: "A real server that went down `downs` times within `window` serves again only after it was well for `hold` without a break.",
		attributes: []attribute{
			{name: "downs", kind: numberValue, least: 1, most: maxNumber, otherwise: "3", doc: "How often."},
			{name: "window", kind: durationValue, otherwise: `"5m"`, doc: "Within what time."},
			{name: "hold", kind: durationValue, otherwise: `"1m"`, doc: "For how long it must be well."},
		},
	},
	alertSpec,
	{
		name: "sla", doc: "What was promised about the service: `batuta sla` states availability by it.",
		attributes: []attribute{
			{name: "target", kind: textValue, otherwise: "no target", doc: "Availability in percent: `\"99.95\"`."},
			{name: "hours", kind: textValue, otherwise: "always", doc: "When it counts: `\"Mon-Fri 08:00-18:00, Sat 09:00-13:00, except 2026-12-25\"`."},
			{name: "tz", kind: textValue, otherwise: "that of the machine", doc: "Time zone of the hours, like `\"Europe/Berlin\"`."},
		},
	},
}

// nativeFile is the native file itself.
var nativeFile = &blockSpec{
	blocks: []*blockSpec{
		{
			name: "director", doc: "What concerns the director as a whole.",
			attributes: []attribute{
				{name: "auto_reload", kind: flagValue, otherwise: "false", doc: "The file is read again when it changes."},
				{name: "callback", kind: textValue, doc: "Program to run, with the file's path, after the file has changed."},
				{name: "log_file", kind: textValue, otherwise: "`\"" + defaultLogFile + "\"`", doc: "Path, or a syslog facility (a name without `/`)."},
				{name: "supervised", kind: flagValue, otherwise: "false", doc: "Log to standard output instead."},
				{name: "execute", kind: listValue, doc: "Further files, each for a director of its own beside this one."},
				{name: "maintenance_dir", kind: textValue, doc: "Directory in which a file named after a real server takes that out of service."},
			},
		},
		{
			name: "defaults", doc: "What holds for all services that do not say otherwise. Blocks are joined attribute by attribute.",
			attributes: serviceAttributes,
			blocks:     append(slices.Clone(serviceBlocks), manyOf(fallbackSpec)),
		},
		{
			name: "service", label: `[tcp|udp|sctp] ADDRESS:PORT, fwm MARK or fwm6 MARK`, many: true,
			doc: "A virtual service: transport and virtual address, or a firewall mark.",
			attributes: append([]attribute{
				{name: "name", kind: textValue, doc: "Name for people, in mails."},
				{name: "comment", kind: textValue, doc: "Remark for people, in mails."},
			}, serviceAttributes...),
			blocks: append(slices.Clone(serviceBlocks), matchSpec, fallbackSpec, realSpec),
		},
	},
}

// manyOf is a block that may stand more than once.
func manyOf(b *blockSpec) *blockSpec {
	c := *b
	c.many = true
	return &c
}
