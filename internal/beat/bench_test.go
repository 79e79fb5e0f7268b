package beat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/messenger"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// How long each case is measured; $BATUTA_BENCH_SECONDS sets another.
const benchSeconds = 20

// benchPort is of the bench's heartbeats alone.
const benchPort = 6962

// TestBenchLateness measures by how much the gaps between two beats exceed the
// keepalive, as the receiver's kernel stamps them: with a process of their own,
// and with the same loop as a goroutine of the node's process. Neither result
// fails: what is late is told.
func TestBenchLateness(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") == "" {
		t.Skip("a benchmark: make bench-beat")
	}
	seconds := benchSeconds
	if s, err := strconv.Atoi(os.Getenv("BATUTA_BENCH_SECONDS")); err == nil {
		seconds = s
	}
	fmt.Printf("| keepalive | load | beats in | late: p50 | p99 | p99.9 | max | beats |\n|---|---|---|---|---|---|---|\n")
	for _, keepalive := range []string{"10ms", "5ms"} {
		for _, load := range []string{"none", "processor", "garbage"} {
			for _, how := range []string{"process", "goroutine"} {
				late := measure(t, how, load, keepalive, time.Duration(seconds)*time.Second)
				slices.Sort(late)
				at := func(q float64) time.Duration {
					return late[min(len(late)-1, int(q*float64(len(late))))].Round(10 * time.Microsecond)
				}
				fmt.Printf("| %s | %s | %s | %v | %v | %v | %v | %d |\n", keepalive, load, how, at(.5), at(.99), at(.999), late[len(late)-1].Round(10*time.Microsecond), len(late))
			}
		}
	}
}

// TestBenchCost measures what a node's beat process needs in a pair that runs.
func TestBenchCost(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") == "" {
		t.Skip("a benchmark: make bench-beat")
	}
	fmt.Printf("| keepalive | packets a second, in and out | processor |\n|---|---|---|\n")
	for _, keepalive := range []string{"10ms", "5ms"} {
		t.Setenv("BATUTA_BENCH_KEEPALIVE", keepalive)
		a, b := exec.Command("/proc/self/exe"), exec.Command("/proc/self/exe")
		a.Env = append(os.Environ(), "BATUTA_BENCH_NODE=process", "BATUTA_BENCH_NAME=a", "BATUTA_BENCH_LOAD=none")
		b.Env = append(os.Environ(), "BATUTA_BENCH_NODE=process", "BATUTA_BENCH_NAME=b", "BATUTA_BENCH_LOAD=none")
		pid := started(t, a)
		started(t, b)
		time.Sleep(7 * time.Second) // a node's first moments are over
		before, packets := rig.Ran(t, pid), udpPackets(t)
		time.Sleep(10 * time.Second)
		cpu, packets := rig.Ran(t, pid)-before, udpPackets(t)-packets
		fmt.Printf("| %s | %d | %.2f %% |\n", keepalive, packets/10, 100*cpu.Seconds()/10)
		for _, c := range []*exec.Cmd{a, b} {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
}

// started starts a bench's node and returns the process that beats.
func started(t *testing.T, cmd *exec.Cmd) (pid int) {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return pid
}

// udpPackets is how many datagrams this host has delivered.
func udpPackets(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "Udp:" && f[1] != "InDatagrams" {
			n, _ = strconv.Atoi(f[1])
		}
	}
	return n
}

// measure runs one node and returns by how much its beats were late.
func measure(t *testing.T, how, load, keepalive string, span time.Duration) (late []time.Duration) {
	t.Helper()
	in, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 94, 0, 2), Port: benchPort})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	raw, err := in.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	}), in.SetReadDeadline(time.Now().Add(span+10*time.Second))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "BATUTA_BENCH_NODE="+how, "BATUTA_BENCH_NAME=a", "BATUTA_BENCH_LOAD="+load, "BATUTA_BENCH_KEEPALIVE="+keepalive)
	started(t, cmd)
	if load == "processor" {
		for range 2 * runtime.NumCPU() {
			spinner := exec.Command("/proc/self/exe")
			spinner.Env = append(os.Environ(), "BATUTA_BENCH_NODE=spin")
			started(t, spinner)
			defer func() { _ = spinner.Process.Kill(); _ = spinner.Wait() }()
		}
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	pace, _ := time.ParseDuration(keepalive)
	buf, oob := make([]byte, 2048), make([]byte, 128)
	var first, last time.Time
	for {
		_, on, _, _, err := in.ReadMsgUDP(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:on])
		if err != nil || len(messages) != 1 {
			t.Fatal("no time stamp")
		}
		d := messages[0].Data
		at := time.Unix(int64(binary.NativeEndian.Uint64(d)), int64(binary.NativeEndian.Uint64(d[8:])))
		switch {
		case first.IsZero():
			first = at
		case at.Sub(first) > span+2*time.Second:
			return late
		case at.Sub(first) > 2*time.Second: // past its first words
			late = append(late, max(0, at.Sub(last)-pace))
		}
		last = at
	}
}

// benchNode is a process of the bench.
func benchNode(how string) {
	if how == "spin" {
		fmt.Println(os.Getpid())
		for n := uint64(0); ; n++ { // a number that is never printed, but who knows that
			if n == 1<<63 {
				fmt.Println(n)
			}
		}
	}
	life := lifeOf(model.NodeName(os.Getenv("BATUTA_BENCH_NAME")), benchPort, time.Hour, uint32(time.Now().Unix()))
	life.Heartbeat.Keepalive, _ = time.ParseDuration(os.Getenv("BATUTA_BENCH_KEEPALIVE"))
	if os.Getenv("BATUTA_BENCH_LOAD") == "garbage" {
		for range 2 * runtime.NumCPU() {
			go garbage()
		}
	}
	sink := func(model.Event) {}
	if how == "process" {
		c, err := Start(Options{Begin: func() (Life, error) { return life, nil }, Sink: sink,
			Heard: func(map[model.NodeName]heartbeat.Floor) error { return nil }, Learnt: func(string) error { return nil }})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			for range c.Events() { //nolint:revive // nobody wants them
			}
		}()
		fmt.Println(c.life.cmd.Process.Pid)
		_ = c.Run(context.Background())
		return
	}
	l, err := link.Open(life.Heartbeat.Media[0], link.Options{Source: life.Source, Warn: func(error) {}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	loop, err := messenger.New(messenger.Config{Heartbeat: life.Heartbeat, Links: []link.Link{l}, Generation: life.Generation,
		UUID: life.UUID, Rand: rand.New(rand.NewPCG(1, 2)), Sink: sink})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(os.Getpid())
	_ = loop.Run(context.Background())
}

// garbage is what a busy daemon does to its collector: it keeps some tens of
// megabytes of small things and replaces them all the time.
func garbage() {
	type thing struct {
		next *thing
		name string
	}
	keep := make([]*thing, 100_000)
	for i := 0; ; i++ {
		at := i % len(keep)
		keep[at] = &thing{next: keep[(i*7919)%len(keep)], name: strconv.Itoa(i)}
		if i%64 == 0 {
			keep[at].next = nil
		}
	}
}
