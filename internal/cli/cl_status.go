package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
)

// Exit codes of cl_status (cl_status(1), and what the program does).
const (
	clFailed  = 1 // not running, a node that is down, a parameter that is not set
	clUsage   = 11
	clTimeout = 12
	clUnknown = 13 // a node or link that does not exist
)

// clPatience is how long cl_status waits for the daemon.
const clPatience = 5 * time.Second

// heartbeatVersion is the release whose commands these are.
const heartbeatVersion = "3.0.6"

// clUsageText is the usage of cl_status, word for word: scripts and people know it.
const clUsageText = `Usage: cl_status <sub-command> [<options>] [<parameters>]

Sub-commands:
clientstatus <node-name> <client-id> [<timeout>]
	Show the status of heartbeat clients.
hblinkstatus <node-name> <link-name>
	Show the status of a heartbeat link
hbstatus
	Indicate if heartbeat is running on the local system.
	Options:
		-v	verbose: also add "listnodes -v" output
listnodes [<option>]
	List the nodes in the cluster.
	Options:
		-p	list only 'ping' type nodes
		-n	list only 'normal' type nodes
		-v	verbose: also list type and status,
			then add "listhblinks -v" output
listhblinks <node-name>
	List the network interfaces used as hearbeat links.
	Options:
		-v	verbose: list link status as well
nodestatus <node-name>
	List the node status.
nodeweight <node-name>
	List the node weight.
nodesite <node-name>
	List the node site.
nodetype <node-name>
	List the nodes of a given type.
rscstatus
	Show the status of cluster resources.
hbparameter -p <parameter-name>
	Retrieve the value of a cluster parameter.
	As for the valid parameter names, please refer to the man page.
`

func newClStatusCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "cl_status SUBCOMMAND [-mnpv] [PARAMETER...]",
		Short: "Heartbeat's cl_status: what the cluster is like, for scripts",
		Long: `Heartbeat's cl_status, also by a link of that name: the same sub-commands,
outputs and exit codes. -m prints a sentence instead of a word; --json prints
all there is to know as one object.

` + clUsageText + `
Exit codes: 0 fine, 1 not running or a node that is down, 11 a wrong call, 12 no
answer within five seconds, 13 an unknown link.`,
		Example:            "  batuta cl_status rscstatus\n  batuta cl_status listnodes -n",
		DisableFlagParsing: true, // its letters mean other things with other sub-commands
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := ownFlags(o, args)
			if err != nil {
				return &exitError{clUsage, err.Error()}
			}
			c := clStatus{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), client: o.client(), json: o.json}
			return c.run(cmd.Context(), args)
		},
	}
}

// ownFlags takes this program's global flags out of the arguments of a command
// that has a grammar of its own.
func ownFlags(o *options, args []string) ([]string, error) {
	known := map[string]*string{"--run-dir": &o.runDir, "--state-dir": &o.stateDir, "--socket": &o.socket}
	var rest []string
	for i := 0; i < len(args); i++ {
		name, value, given := strings.Cut(args[i], "=")
		where, ok := known[name]
		switch {
		case args[i] == "--json":
			o.json = true
			continue
		case !ok:
			rest = append(rest, args[i])
			continue
		case !given && i+1 == len(args):
			return nil, fmt.Errorf("%s needs a value", name)
		case !given:
			i++
			value = args[i]
		}
		*where = value
	}
	return rest, nil
}

// clStatus is one call of cl_status.
type clStatus struct {
	out, err io.Writer
	client   *api.Client
	json     bool

	message, verbose, ping, normal bool
	name                           string   // of a parameter
	words                          []string // what are no options
	state                          api.Heartbeat
}

// clCommand is a sub-command.
type clCommand struct {
	least int    // of words
	short string // what is said when there are fewer
	do    func(*clStatus) error
}

// clCommands are the sub-commands. parameter is the name that the manual page
// has for hbparameter.
var clCommands = map[string]clCommand{
	"hbstatus":     {do: (*clStatus).running},
	"listnodes":    {do: (*clStatus).listNodes},
	"nodestatus":   {1, "Not enough parameters.", (*clStatus).nodeStatus},
	"nodetype":     {1, "Not enough parameters.", (*clStatus).nodeType},
	"nodeweight":   {1, "Not enough parameters.", (*clStatus).nodeWeight},
	"nodesite":     {1, "Not enough parameters.", (*clStatus).nodeSite},
	"listhblinks":  {1, "No enough parameter.", (*clStatus).listLinks},
	"hblinkstatus": {2, "No enough parameter.", (*clStatus).linkStatus},
	"clientstatus": {2, "No enough parameter.", (*clStatus).clientStatus},
	"rscstatus":    {do: (*clStatus).resources},
	"hbparameter":  {do: (*clStatus).parameter},
	"parameter":    {do: (*clStatus).parameter},
}

func (c *clStatus) run(ctx context.Context, args []string) error {
	if len(args) == 0 && !c.json || len(args) > 0 && (args[0] == "-h" || args[0] == "--help") {
		fmt.Fprint(c.out, clUsageText)
		return nil
	}
	if len(args) == 0 {
		args = []string{"hbstatus"}
	}
	sub, ok := clCommands[args[0]]
	if !ok {
		c.complain(args[0] + ": invalid sub-command.")
		return &exitError{code: clUsage}
	}
	if err := c.options(args[0], args[1:]); err != nil {
		c.complain(err.Error())
		return &exitError{code: clUsage}
	}
	ctx, cancel := context.WithTimeout(ctx, clPatience)
	defer cancel()
	var err error
	c.state, err = c.client.Heartbeat(ctx)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		c.complain("Heartbeat does not answer")
		return &exitError{code: clTimeout}
	case err != nil && args[0] == "hbstatus" && !c.json:
		fmt.Fprintln(c.out, "Heartbeat is stopped on this machine.")
		if c.verbose {
			fmt.Fprintf(c.out, "(%v)\n", err)
		}
		return &exitError{code: clFailed}
	case err != nil:
		c.complain("Cannot signon with heartbeat")
		c.complain("REASON: " + err.Error())
		return &exitError{code: clFailed}
	case c.json:
		return printJSON(c.out, c.state)
	case len(c.words) < sub.least:
		fmt.Fprintln(c.err, sub.short)
		return &exitError{code: clUsage}
	}
	return sub.do(c)
}

// options reads what follows the sub-command, in the way of getopt(3).
func (c *clStatus) options(sub string, args []string) error {
	named := sub == "hbparameter" || sub == "parameter"
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			c.words = append(c.words, args[i+1:]...)
			return nil
		}
		if len(a) < 2 || a[0] != '-' {
			c.words = append(c.words, a)
			continue
		}
		for j := 1; j < len(a); j++ {
			switch letter := a[j]; {
			case letter == 'm':
				c.message = true
			case letter == 'v':
				c.verbose = true
			case letter == 'n':
				c.normal = true
			case letter == 'p' && !named:
				c.ping = true
			case letter == 'p' && j+1 < len(a):
				c.name, j = a[j+1:], len(a)
			case letter == 'p' && i+1 < len(args):
				i++
				c.name = args[i]
			case letter == 'p':
				return nil // its absence is reported by whoever wants it
			default:
				return fmt.Errorf("invalid option -- '%c'", letter)
			}
		}
	}
	return nil
}

// complain writes an error as Heartbeat's programs do where they have no log.
func (c *clStatus) complain(text string) {
	host, _ := os.Hostname() // "" reads as well
	fmt.Fprintf(c.err, "%s %s cl_status: [%d]: ERROR: %s\n", time.Now().Format("Jan _2 15:04:05"), host, os.Getpid(), text)
}

// say prints a word, or with -m the sentence that has it.
func (c *clStatus) say(word, sentence string, args ...any) {
	if c.message {
		word = fmt.Sprintf(sentence, args...)
	}
	fmt.Fprintln(c.out, word)
}

func (c *clStatus) running() error {
	if !c.verbose {
		fmt.Fprintln(c.out, "Heartbeat is running on this machine.")
		return nil
	}
	fmt.Fprintf(c.out, "version:\t%s (batuta %s)\nmanaged by:\t\"haresources\"\n", heartbeatVersion, version())
	return c.listNodes()
}

func (c *clStatus) listNodes() error {
	if c.message {
		fmt.Fprintln(c.out, "The nodes are as follow:")
	}
	for _, n := range c.state.Nodes {
		switch {
		case c.ping && n.Type != "ping" || c.normal && n.Type != "normal":
		case c.verbose:
			fmt.Fprintf(c.out, "\n%s\t%s\t(nodetype: %s)\n", n.Name, n.Status, n.Type)
			c.links(n)
		default:
			fmt.Fprintln(c.out, n.Name)
		}
	}
	return nil
}

func (c *clStatus) links(n api.HeartbeatNode) {
	for _, l := range n.Links {
		fmt.Fprint(c.out, "\t", l.Name)
		if c.verbose {
			fmt.Fprint(c.out, "\t", linkWord(l))
		}
		fmt.Fprintln(c.out)
	}
}

func linkWord(l model.LinkView) string {
	if l.Up {
		return "up"
	}
	return "dead"
}

// node is the one that the first word names; nil once its absence was reported.
func (c *clStatus) node() *api.HeartbeatNode {
	n := c.state.Node(c.words[0])
	if n == nil {
		fmt.Fprintln(c.err, "Error. May be due to incorrect node name")
	}
	return n
}

func (c *clStatus) nodeStatus() error {
	n := c.node()
	if n == nil {
		return &exitError{code: clUsage}
	}
	c.say(n.Status, "The cluster node %s is %s", n.Name, n.Status)
	if !slices.Contains([]string{"active", "up", "ping"}, n.Status) {
		return &exitError{code: clFailed}
	}
	return nil
}

func (c *clStatus) nodeType() error {
	n := c.node()
	if n == nil {
		return &exitError{code: clUsage}
	}
	c.say(n.Type, "The node %s's type: %s", n.Name, n.Type)
	return nil
}

func (c *clStatus) nodeWeight() error {
	n := c.node()
	if n == nil {
		return &exitError{code: clUsage}
	}
	c.say(fmt.Sprint(n.Weight), "The weight of the cluster node %s is %d", n.Name, n.Weight)
	return nil
}

func (c *clStatus) nodeSite() error {
	n := c.node()
	if n == nil {
		return &exitError{code: clUsage}
	}
	c.say(n.Site, "The site of the cluster node %s is %s", n.Name, n.Site)
	return nil
}

func (c *clStatus) listLinks() error {
	n := c.state.Node(c.words[0])
	if n == nil {
		c.complain("Cannot start heartbeat link interface walk.")
		c.complain("REASON: there is no node " + c.words[0])
		return &exitError{code: clUnknown}
	}
	if c.message {
		fmt.Fprintln(c.out, "\tthis node has the following heartbeat links:")
	}
	c.links(*n)
	return nil
}

func (c *clStatus) linkStatus() error {
	n := c.state.Node(c.words[0])
	if n == nil || n.Link(c.words[1]) == nil {
		c.complain("Cannot get heartbeat link status")
		c.complain(fmt.Sprintf("REASON: there is no link %s to a node %s", c.words[1], c.words[0]))
		return &exitError{code: clUnknown}
	}
	l := *n.Link(c.words[1])
	c.say(linkWord(l), "The node %s's heartbeat link %s is %s", n.Name, l.Name, linkWord(l))
	if !l.Up {
		return &exitError{code: clFailed}
	}
	return nil
}

// clientStatus tells of programs that respawn lines start, and of what is
// built in: there is no client library to sign on with.
func (c *clStatus) clientStatus() error {
	if c.words[0] == string(c.state.Self) && slices.Contains(c.state.Clients, c.words[1]) {
		fmt.Fprintln(c.out, "online")
		return nil
	}
	fmt.Fprintln(c.out, "offline")
	return &exitError{code: clFailed}
}

func (c *clStatus) resources() error {
	c.say(c.state.Holding, "This node is holding %s resources.", c.state.Holding)
	return nil
}

func (c *clStatus) parameter() error {
	if c.name == "" {
		c.complain("parameter name required")
		return &exitError{code: clUsage}
	}
	value, ok := c.state.Parameters[c.name]
	if !ok {
		c.complain("Cannot get parameter " + c.name + "'s value")
		c.complain("REASON: ha.cf does not set it, and it has no default")
		return &exitError{code: clFailed}
	}
	c.say(value, "Heartbeat parameter %s's value: %s", c.name, value)
	return nil
}
