package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// orders are the requests that change something, for what the daemon can do.
// Each is audited.
func orders(mux *http.ServeMux, daemon Daemon) {
	audit, _ := daemon.(Auditor)
	if d, ok := daemon.(Drainer); ok {
		handleOrder(mux, audit, "drain", d.Drain)
		handleOrder(mux, audit, "ready", d.PutBack)
	}
	if p, ok := daemon.(Planner); ok {
		handleOrder(mux, audit, "maintenance-plan", p.Plan)
		handleOrder(mux, audit, "maintenance-cancel", p.Unplan)
	}
	if m, ok := daemon.(Mover); ok {
		handleOrder(mux, audit, "standby", m.Standby)
		handleOrder(mux, audit, "takeover", m.Takeover)
	}
}

// handleOrder answers POST /v1/VERB, whose body is JSON.
func handleOrder[Q fmt.Stringer, A any](mux *http.ServeMux, audit Auditor, verb string, obey func(context.Context, Q) (A, error)) {
	mux.HandleFunc("POST /v1/"+verb, func(w http.ResponseWriter, r *http.Request) {
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
		order, began := Order{By: CallerOf(r.Context()), Verb: verb, What: q.String()}, time.Now()
		if audit != nil {
			audit.Ordered(order)
		}
		a, err := obey(r.Context(), q)
		if audit != nil {
			audit.Obeyed(order, time.Since(began), err)
		}
		if err != nil {
			refuse(http.StatusConflict, err)
			return
		}
		_ = json.NewEncoder(w).Encode(a) // the client is gone: nobody to tell
	})
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
