package check

import (
	"context"

	"github.com/batuta-ha/batuta/internal/model"
)

// Key names one kind of check: what is done, and for negotiate by which
// application's protocol. Application is "" for all other kinds.
type Key struct {
	Kind        model.CheckType
	Application string
}

// All is every check there is. Combined checks are not in it: a director
// alternates negotiate and connect and keeps the count.
var All = map[Key]Func{
	{Kind: model.CheckOn}:      on,
	{Kind: model.CheckOff}:     off,
	{Kind: model.CheckConnect}: connect,
	{Kind: model.CheckPing}:    ping,

	{model.CheckNegotiate, "http"}:       negotiateHTTP,
	{model.CheckNegotiate, "https"}:      negotiateHTTP,
	{model.CheckNegotiate, "http_proxy"}: negotiateHTTP,
	{model.CheckNegotiate, "none"}:       on,

	// Accepted in configurations, not yet in force.
	{Kind: model.CheckExternal}:          notYet,
	{Kind: model.CheckExternalPerl}:      notYet,
	{model.CheckNegotiate, "dns"}:        notYet,
	{model.CheckNegotiate, "ftp"}:        notYet,
	{model.CheckNegotiate, "imap"}:       notYet,
	{model.CheckNegotiate, "imaps"}:      notYet,
	{model.CheckNegotiate, "ldap"}:       notYet,
	{model.CheckNegotiate, "ldaps"}:      notYet,
	{model.CheckNegotiate, "mysql"}:      notYet,
	{model.CheckNegotiate, "nntp"}:       notYet,
	{model.CheckNegotiate, "oracle"}:     notYet,
	{model.CheckNegotiate, "pgsql"}:      notYet,
	{model.CheckNegotiate, "pop"}:        notYet,
	{model.CheckNegotiate, "pops"}:       notYet,
	{model.CheckNegotiate, "radius"}:     notYet,
	{model.CheckNegotiate, "simpletcp"}:  notYet,
	{model.CheckNegotiate, "sip"}:        notYet,
	{model.CheckNegotiate, "smtp"}:       notYet,
	{model.CheckNegotiate, "submission"}: notYet,
}

// For returns the check that a target asks for, never nil: what does not exist
// is a check that says so.
func For(t model.Target) Func {
	k := Key{Kind: t.Kind}
	if t.Kind == model.CheckNegotiate {
		k.Application = t.Application
	}
	if f, ok := All[k]; ok {
		return f
	}
	return notYet
}

// on is the check of servers that nobody checks: always up.
func on(context.Context, model.Target) model.Verdict {
	return model.Verdict{Status: model.Up, Reason: "not checked"}
}

// off keeps a server out of service.
func off(context.Context, model.Target) model.Verdict {
	return model.Verdict{Status: model.Down, Reason: "switched off"}
}

// notYet stands for checks that the configuration may name and that are not
// made yet.
func notYet(_ context.Context, t model.Target) model.Verdict {
	what := "checktype=" + t.Kind.String()
	if t.Kind == model.CheckNegotiate {
		what = "service=" + t.Application
	}
	return unknown(what + " is not yet in force; use checktype=connect, ping or on meanwhile")
}
