package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// ErrNotRunning is returned when nothing answers on the socket.
var ErrNotRunning = errors.New("no daemon is running there")

// ErrDied is returned when a daemon has left its socket behind.
var ErrDied = errors.New("the daemon there died")

// ErrNotAllowed is returned when the socket belongs to another user.
var ErrNotAllowed = errors.New("the daemon there belongs to another user")

// How long a daemon may take to answer before it counts as hung.
const patience = 10 * time.Second

// Client asks a daemon.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client of the daemon behind that socket.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status asks for the daemon's status.
func (c *Client) Status(ctx context.Context) (Status, error) { return get[Status](ctx, c, "status") }

// Table asks for the table with its counters.
func (c *Client) Table(ctx context.Context) (Table, error) { return get[Table](ctx, c, "table") }

// Flows asks for the connections.
func (c *Client) Flows(ctx context.Context) (Flows, error) { return get[Flows](ctx, c, "flows") }

func get[T any](ctx context.Context, c *Client, what string) (doc T, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://batuta/v1/"+what, nil)
	if err != nil {
		return doc, fmt.Errorf("ask for %s: %w", what, err)
	}
	return do[T](c, req, what)
}

// do makes a request and reads its answer.
func do[T any](c *Client, req *http.Request, what string) (doc T, err error) {
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return doc, fmt.Errorf("%w and left %s behind; addresses and tables may still be in force here: start it again and it adopts them", ErrDied, c.socket)
	case errors.Is(err, fs.ErrNotExist):
		return doc, fmt.Errorf("%w: %s; is it started with the same --run-dir?", ErrNotRunning, c.socket)
	case errors.Is(err, context.DeadlineExceeded):
		return doc, fmt.Errorf("the daemon behind %s has not answered for %v: it hangs, or is stopped (its pid is in the file lock beside the socket)", c.socket, patience)
	case errors.Is(err, fs.ErrPermission):
		return doc, fmt.Errorf("%w (%s): ask as that user, or as root", ErrNotAllowed, c.socket)
	case err != nil:
		return doc, fmt.Errorf("ask the daemon for %s: %w", what, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var p problem
		if json.NewDecoder(resp.Body).Decode(&p) == nil && p.Error != "" {
			return doc, errors.New(p.Error)
		}
		if resp.StatusCode == http.StatusNotFound {
			return doc, fmt.Errorf("the daemon behind %s knows no %s: it is a director without a cluster, or of another version", c.socket, what)
		}
		return doc, fmt.Errorf("the daemon answered %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		return doc, fmt.Errorf("the daemon's answer about %s: %w", what, err)
	}
	return doc, nil
}
