// bench-ipvsadm stands in for ipvsadm(8) where the original is measured: it
// keeps a table in the file $BENCH_TABLE, a line for each service and real
// server, and prints it in the manual's format. What a call costs is little
// more than starting a process.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// row is a service (real is "") or a real server of it.
type row struct{ service, real, scheduler, forward, weight string }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ipvsadm:", err)
		os.Exit(255)
	}
}

func run(args []string) error {
	file := os.Getenv("BENCH_TABLE")
	text, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	var table []row
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(strings.TrimSpace(line), ","); len(f) == 5 {
			table = append(table, row{f[0], f[1], f[2], f[3], f[4]})
		}
	}
	op, r := "-L", row{scheduler: "wlc", forward: "Route", weight: "1"}
	for i := 0; i < len(args); i++ {
		value := func() string {
			if i++; i < len(args) {
				return args[i]
			}
			return ""
		}
		switch a := args[i]; a {
		case "-A", "-E", "-D", "-a", "-e", "-d", "-L":
			op = a
		case "-t":
			r.service = value()
		case "-r":
			r.real = value()
		case "-s":
			r.scheduler = value()
		case "-w":
			r.weight = value()
		case "-m":
			r.forward = "Masq"
		case "-g":
			r.forward = "Route"
		case "-i":
			r.forward = "Tunnel"
		case "-x", "-y":
			value() // no thresholds here
		case "-n":
		default:
			return fmt.Errorf("no option %q here", a)
		}
	}
	same := func(o row) bool { return o.service == r.service && o.real == r.real }
	at := slices.IndexFunc(table, same)
	switch op {
	case "-L":
		list(table)
		return nil
	case "-A", "-a":
		if at >= 0 {
			return fmt.Errorf("%s %s exists", r.service, r.real)
		}
		table = append(table, r)
	default:
		if at < 0 {
			return fmt.Errorf("no %s %s", r.service, r.real)
		}
		if op == "-E" || op == "-e" {
			table[at] = r
		} else {
			table = slices.DeleteFunc(table, func(o row) bool { return same(o) || op == "-D" && o.service == r.service })
		}
	}
	var b strings.Builder
	for _, o := range table {
		fmt.Fprintf(&b, "%s,%s,%s,%s,%s\n", o.service, o.real, o.scheduler, o.forward, o.weight)
	}
	next := fmt.Sprintf("%s.%d", file, os.Getpid())
	if err := os.WriteFile(next, []byte(b.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(next, file)
}

func list(table []row) {
	var b strings.Builder
	b.WriteString("IP Virtual Server version 1.2.1 (size=4096)\n" +
		"Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n")
	for _, s := range table {
		if s.real != "" {
			continue
		}
		fmt.Fprintf(&b, "TCP  %s %s\n", s.service, s.scheduler)
		for _, r := range table {
			if r.service == s.service && r.real != "" {
				fmt.Fprintf(&b, "  -> %-28s %-7s %-6s %-10d %-10d\n", r.real, r.forward, r.weight, 0, 0)
			}
		}
	}
	os.Stdout.WriteString(b.String())
}
