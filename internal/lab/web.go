package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// PageText is what the page of a healthy real server contains; the tutorial's
// ldirectord.cf looks for it.
const PageText = "test page"

// Web is the small web server of the lab's real servers, so that a demo needs
// nothing installed: the hidden verb `batuta lab serve`.
type Web struct {
	Listen string // address to listen on: ":80"
	Name   string // the real server's name: header X-Real-Server, and a line
	Body   string // first line of the page; empty: PageText
}

// Run serves until ctx ends, then lets running answers finish.
func (w Web) Run(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", w.Listen)
	if err != nil {
		return fmt.Errorf("lab serve: %w", err)
	}
	server := &http.Server{Handler: w, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		stopped <- errors.Join(server.Shutdown(grace), server.Close())
	})
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("lab serve: %w", err)
	}
	return ignore(<-stopped, context.DeadlineExceeded)
}

// ServeHTTP answers "/" and the tutorial's "/.testpage".
func (w Web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("X-Real-Server", w.Name)
	if r.URL.Path != "/" && r.URL.Path != "/.testpage" {
		http.NotFound(rw, r)
		return
	}
	body := w.Body
	if body == "" {
		body = PageText
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(rw, "%s\n%s\n", body, w.Name)
}
