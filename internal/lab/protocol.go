package lab

import "net/netip"

// The messages between the lab's processes. Each process is the same
// executable, so they need no version.

// launchRequest is the caller's first message to the launcher.
type launchRequest struct {
	Binary  string // absolute, without symbolic links
	Bridges []string
	PcapDir string // absolute; empty: no captures
}

// switchRequest is every later message to the launcher.
type switchRequest struct {
	Op     switchOp
	Node   string
	Device string     // opLink
	Up     bool       // opLink
	Boot   bootConfig // opBoot
}

type switchOp int

const (
	opUnset switchOp = iota
	opBoot           // the reply carries the socket to the node's init
	opKill           // the reply comes when no process of the node is left
	opLink           // pull the cable or plug it in
)

// switchReply answers a launchRequest or a switchRequest.
type switchReply struct {
	Error string
}

// bootConfig is what a machine is made of; the launcher passes it on to init.
type bootConfig struct {
	Name       string
	Root       string // Machine.Root
	BootID     string
	Forward    bool
	Interfaces []Interface
	Cut        map[string]bool // cables that are pulled at the moment
	Gateway    netip.Addr
	Files      map[string]File // used only when the disk is new
}

// initRequest asks a node's init for something; exec brings three files.
type initRequest struct {
	Op     initOp
	ID     int // of the job; chosen by the caller
	Args   []string
	Env    []string // added to the node's environment
	Dir    string
	TTY    bool // standard input becomes the controlling terminal
	Signal int
}

type initOp int

const (
	initUnset  initOp = iota
	initExec          // start a job
	initSignal        // signal a job's process group
	initLinks         // report interfaces and addresses
)

// initReply is what init says: first Ready, then about jobs.
type initReply struct {
	Kind  initKind
	ID    int
	Error string
	PID   int // in the node's PID namespace
	Code  int // exit status; 128 + signal when killed by one
	Links []LinkStatus
}

type initKind int

const (
	replyUnset   initKind = iota
	replyReady            // the node has booted
	replyFailed           // the node, or the job ID, could not be started
	replyStarted          // job ID runs as PID
	replyExited           // job ID ended with Code
	replyLinks            // answer ID to initLinks
)
