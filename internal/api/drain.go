package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// DrainRequest asks to take a real server out of service, or to put it back.
type DrainRequest struct {
	Real     string        `json:"real"`        // ADDRESS:PORT, or ADDRESS for all its ports
	Deadline time.Duration `json:"deadline_ns"` // cut what is left after that; 0 for never
}

// DrainAnswer says which real servers of which services were meant.
type DrainAnswer struct {
	Version int      `json:"version"`
	Reals   []string `json:"reals"` // "tcp 10.0.0.1:80 10.0.1.1:8080"
}

// Drainer is implemented by daemons whose real servers can be drained.
type Drainer interface {
	Drain(ctx context.Context, r DrainRequest) (DrainAnswer, error)
	PutBack(ctx context.Context, r DrainRequest) (DrainAnswer, error)
}

// handleDrain adds the requests of a Drainer.
func handleDrain(mux *http.ServeMux, d Drainer) {
	handleOrder(mux, "POST /v1/drain", d.Drain)
	handleOrder(mux, "POST /v1/ready", d.PutBack)
}

// handleOrder answers a request that has a JSON body.
func handleOrder[Q, A any](mux *http.ServeMux, pattern string, obey func(context.Context, Q) (A, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		w.Header().Set("Content-Type", "application/json")
		refuse := func(code int, err error) {
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(problem{Error: err.Error()}) // the client is gone: nobody to tell
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&q); err != nil {
			refuse(http.StatusBadRequest, fmt.Errorf("the request is no JSON of its kind: %w", err))
			return
		}
		a, err := obey(r.Context(), q)
		if err != nil {
			refuse(http.StatusConflict, err)
			return
		}
		_ = json.NewEncoder(w).Encode(a) // the client is gone: nobody to tell
	})
}

// Drain takes a real server out of service.
func (c *Client) Drain(ctx context.Context, r DrainRequest) (DrainAnswer, error) {
	return post[DrainAnswer](ctx, c, "drain", r)
}

// PutBack puts a drained real server back into service.
func (c *Client) PutBack(ctx context.Context, r DrainRequest) (DrainAnswer, error) {
	return post[DrainAnswer](ctx, c, "ready", r)
}

func post[A any](ctx context.Context, c *Client, what string, q any) (doc A, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return doc, fmt.Errorf("ask for %s: %w", what, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://batuta/v1/"+what, bytes.NewReader(body))
	if err != nil {
		return doc, fmt.Errorf("ask for %s: %w", what, err)
	}
	return do[A](c, req, what)
}
