package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// Server answers on a Unix socket that only its owner may open.
type Server struct {
	daemon Daemon
	ln     net.Listener
	ready  chan struct{}
}

// Listen opens the socket. A socket file left behind by a dead daemon is
// replaced: the caller holds the run directory's lock.
func Listen(path string, d Daemon) (*Server, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect the control socket: %w", err), ln.Close())
	}
	return &Server{daemon: d, ln: ln, ready: make(chan struct{})}, nil
}

// Close takes the socket away again from a server that will not run.
func (s *Server) Close() error { return s.ln.Close() }

// String names the task.
func (s *Server) String() string { return "api" }

// Ready is closed once requests are answered.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run answers requests until ctx ends, then removes the socket.
func (s *Server) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	handle(mux, "GET /v1/status", s.daemon.Status)
	handle(mux, "GET /v1/table", s.daemon.Table)
	handle(mux, "GET /v1/flows", s.daemon.Flows)
	mux.HandleFunc("GET /metrics", serveMetrics(s.daemon))
	if c, ok := s.daemon.(Clusterer); ok {
		handle(mux, "GET /v1/heartbeat", c.Heartbeat)
	}
	orders(mux, s.daemon)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ConnContext: withCaller}
	stop := context.AfterFunc(ctx, func() {
		// Requests in progress get a moment; nobody waits for a stuck client.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // only closes what the shutdown left
		}
	})
	defer stop()
	close(s.ready)
	if err := srv.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// handle answers one request with the JSON form of what ask returns.
func handle[T any](mux *http.ServeMux, pattern string, ask func(context.Context) (T, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		doc, err := ask(r.Context())
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(problem{Error: err.Error()}) // the client is gone: nobody to tell
			return
		}
		_ = json.NewEncoder(w).Encode(doc) // the client is gone: nobody to tell
	})
}

type problem struct {
	Error string `json:"error"`
}
