package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
)

// exitStopped is LSB's answer of a status form when nothing runs.
const exitStopped = 3

func newLabCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "The tutorial's cluster in network namespaces, to try things and break them",
		Long: `Build the cluster of the tutorial on this machine: a client, two directors with
their heartbeat link, four real servers in two networks. Each is a node with
its own network, files, processes and boot id; the real program runs in it.

The machine itself is not touched: whatever happens in the lab, and however it
ends, nothing of it is left. Needs root.`,
		Example: `  sudo batuta lab up
  sudo batuta lab exec client -- ping -c 1 10.1.0.100
  sudo batuta lab kill lvs01
  sudo batuta lab heal lvs01`,
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newLabUpCommand(o),
		newLabStatusCommand(o),
		labVerb(o, "kill NODE", "Take the power from a node: all its processes die, its cables fall silent",
			cobra.ExactArgs(1), func(c lab.Client, args []string) error { return c.Kill(args[0]) }),
		labVerb(o, "cut NODE [INTERFACE...]", "Pull cables of a node: those named, or all",
			cobra.MinimumNArgs(1), func(c lab.Client, args []string) error { return c.Cut(args[0], args[1:]...) }),
		labVerb(o, "heal NODE [INTERFACE...]", "Plug cables in again, and give a killed node its power back",
			cobra.MinimumNArgs(1), func(c lab.Client, args []string) error { return c.Heal(args[0], args[1:]...) }),
		newLabExecCommand(o),
		labVerb(o, "down", "Take the lab down", cobra.NoArgs,
			func(c lab.Client, _ []string) error { return c.Down() }),
		newLabServeCommand(),
		&cobra.Command{Use: "launch", Hidden: true, RunE: func(*cobra.Command, []string) error { return lab.Launch() }},
		&cobra.Command{Use: "init", Hidden: true, RunE: func(_ *cobra.Command, args []string) error { return lab.Init(args) }},
	)
	return cmd
}

// labVerb is a verb that only asks the lab for something.
func labVerb(o *options, use, short string, args cobra.PositionalArgs, do func(lab.Client, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: positional(args),
		RunE: func(_ *cobra.Command, args []string) error { return do(lab.Client{Dir: o.runDir}, args) },
	}
}

// labUp is what `lab up` was asked for.
type labUp struct {
	haD    string
	pcap   string
	detach bool
	log    string // of the detached process; empty: in the foreground
}

func newLabUpCommand(o *options) *cobra.Command {
	var up labUp
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build the lab and start it, until Ctrl-C or `batuta lab down`",
		Long: `Build the lab, start the directors and the real servers, and show what they
print. The directors get the tutorial's own files as /etc/ha.d, unless --ha.d
names others; authkeys is made private (0600) in the copy.`,
		Example: "  sudo batuta lab up\n  sudo batuta lab up --ha.d ./my-ha.d --detach",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if up.detach {
				return up.background(o, cmd)
			}
			return up.run(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&up.haD, "ha.d", "", "directory of ha.cf, authkeys, haresources, ldirectord.cf (default: the tutorial's)")
	f.StringVar(&up.pcap, "pcap", "", "write a capture file for each bridge into this directory")
	f.BoolVar(&up.detach, "detach", false, "return when the lab is up; `batuta lab down` ends it")
	f.StringVar(&up.log, "log", "", "")
	_ = f.MarkHidden("log")
	return cmd
}

func (up *labUp) run(ctx context.Context, o *options, out io.Writer) (err error) {
	if err := lab.Available(); err != nil {
		return err
	}
	lo := lab.Options{PcapDir: up.pcap}
	if up.haD != "" {
		if info, err := os.Stat(up.haD); err != nil || !info.IsDir() {
			return &exitError{exitBadConfig, fmt.Sprintf("lab up: --ha.d %s is no directory", up.haD)}
		}
		lo.HaD = os.DirFS(up.haD)
	}
	if up.pcap != "" {
		if err := os.MkdirAll(up.pcap, 0o755); err != nil {
			return fmt.Errorf("lab up: --pcap: %w", err)
		}
	}
	server, err := lab.NewServer(o.runDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	// What a node prints while the lab starts comes after what is said here.
	var screen sync.Mutex
	screen.Lock()
	unlock := sync.OnceFunc(screen.Unlock)
	defer unlock()
	lo.Log = func(node, line string) {
		screen.Lock()
		defer screen.Unlock()
		fmt.Fprintf(out, "%s: %s\n", node, line)
	}
	l, err := lab.Start(ctx, lo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(l.Close(), err) }()
	up.welcome(out, o, l)
	if up.log != "" {
		if err := leaveFor(up.log); err != nil {
			return err
		}
		defer func() { _ = os.Remove(up.log) }() // a log left behind does no harm
	}
	unlock()
	return server.Serve(ctx, l)
}

// welcome says what can be done now.
func (up *labUp) welcome(out io.Writer, o *options, l *lab.Lab) {
	var names []string
	for _, m := range l.Topology().Machines {
		names = append(names, m.Name)
	}
	self := "batuta lab"
	if o.runDir != defaultRunDir {
		self += " --run-dir " + o.runDir
	}
	fmt.Fprintf(out, `The lab is up: %s. Its service: http://%s/.testpage

  %[3]s status                          who is up, who has the virtual address
  %[3]s exec lvs01 -- batuta status     any command on any node; a shell: bash
  %[3]s kill lvs01                      power loss; heal gives the power back
  %[3]s cut lvs02 eth1                  pull a cable; heal plugs it in
  %[3]s down                            the end`, strings.Join(names, ", "), lab.TutorialVIP, self)
	if up.log == "" {
		fmt.Fprint(out, ", as Ctrl-C here")
	}
	fmt.Fprint(out, "\n\n")
}

// leaveFor sends all further output of this process to a file, and closes what
// it had: who waits for the lab to be up sees the end of it.
func leaveFor(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("lab up: log: %w", err)
	}
	defer f.Close()
	for _, fd := range []int{unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("lab up: log: %w", err)
		}
	}
	return nil
}

// background starts this verb once more, in a session of its own, and waits
// until the lab is up: the process then moves its output to the log.
func (up *labUp) background(o *options, cmd *cobra.Command) error {
	if err := lab.Available(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own file: %w", err)
	}
	log := filepath.Join(o.runDir, "lab.log")
	args := []string{"lab", "up", "--run-dir", o.runDir, "--log", log}
	if up.haD != "" {
		args = append(args, "--ha.d", up.haD)
	}
	if up.pcap != "" {
		args = append(args, "--pcap", up.pcap)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child := exec.Command(self, args...)
	child.Stdout, child.Stderr = w, w
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("lab up: %w", err)
	}
	said, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("lab up: %w", err)
	}
	if _, err := (lab.Client{Dir: o.runDir}).Status(); err == nil && strings.HasPrefix(string(said), "The lab is up") {
		fmt.Fprintf(cmd.OutOrStdout(), "%sWhat the nodes print: %s\n", said, log)
		return child.Process.Release()
	}
	err = child.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("lab up: the lab ended at once: %s%v", said, err) //nolint:errorlint // an exit status is nothing to unwrap
	}
	return &exitError{max(exit.ExitCode(), exitFailed), strings.TrimPrefix(strings.TrimSpace(string(said)), "batuta: ")}
}

func newLabStatusCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Every node: power, service, cables and the addresses it has now",
		Args:  positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := lab.Client{Dir: o.runDir}.Status()
			switch {
			case errors.Is(err, lab.ErrNoLab):
				return &exitError{exitStopped, err.Error()}
			case err != nil:
				return err
			case o.json:
				return printJSON(cmd.OutOrStdout(), status)
			}
			return printLab(cmd.OutOrStdout(), status)
		},
	}
}

// printLab shows a line a cable.
func printLab(out io.Writer, s lab.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tROLE\tPOWER\tSERVICE\tCABLE\tBRIDGE\tADDRESSES")
	for _, n := range s.Nodes {
		power := "off"
		if n.Up {
			power = "on"
		}
		head := strings.Join([]string{n.Name, n.Role, power, n.Service}, "\t")
		for _, link := range n.Links {
			cable := link.Device
			if link.Cut {
				cable += " (cut)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", head, cable, link.Bridge, strings.Join(link.Addresses, " "))
			head = "\t\t\t"
		}
	}
	return w.Flush()
}

func newLabExecCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "exec NODE -- COMMAND [ARGUMENT...]",
		Short:   "Run a command on a node; its exit status becomes this one's",
		Example: "  sudo batuta lab exec lvs01 -- batuta table -n\n  sudo batuta lab exec lvs02 -- bash",
		Args:    positional(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			node, command := args[0], args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return usageError(cmd, errors.New("no command"))
			}
			code, err := labExec(lab.Client{Dir: o.runDir}, node, command)
			if err != nil {
				return err
			}
			if code != exitFine {
				return &exitError{code, ""}
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after NODE are the command's
	return cmd
}

// labExec runs a command with this process's standard files; where they are a
// terminal, with one of its own.
func labExec(client lab.Client, node string, command []string) (int, error) {
	files := [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	var env []string
	if kind, ok := os.LookupEnv("TERM"); ok {
		env = append(env, "TERM="+kind)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	if !lab.IsTerminal(os.Stdin) || !lab.IsTerminal(os.Stdout) {
		return client.Exec(node, command, env, false, files, signals)
	}
	terminal, err := lab.OpenTerminal(os.Stdin)
	if err != nil {
		return 0, err
	}
	files = [3]*os.File{terminal.Inner, terminal.Inner, terminal.Inner}
	code, err := client.Exec(node, command, env, true, files, signals)
	return code, errors.Join(err, terminal.Close())
}

func newLabServeCommand() *cobra.Command {
	var w lab.Web
	cmd := &cobra.Command{
		Use:    "serve",
		Short:  "The web server of the lab's real servers",
		Hidden: true,
		Args:   positional(cobra.NoArgs),
		RunE:   func(cmd *cobra.Command, _ []string) error { return w.Run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&w.Listen, "listen", ":80", "address and port")
	f.StringVar(&w.Name, "name", "", "the real server's name")
	f.StringVar(&w.Body, "body", lab.PageText, "first line of the page")
	return cmd
}
