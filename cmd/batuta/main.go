// Command batuta is the whole program: director, cluster daemon and the tools
// around them. It hands its arguments, its name and signals to package cli.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/batuta-ha/batuta/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, cli.Arguments(os.Args), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
