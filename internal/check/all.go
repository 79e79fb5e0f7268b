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
	{Kind: model.CheckOn}:           on,
	{Kind: model.CheckOff}:          off,
	{Kind: model.CheckConnect}:      connect,
	{Kind: model.CheckPing}:         ping,
	{Kind: model.CheckExternal}:     external,
	{Kind: model.CheckExternalPerl}: externalPerl,

	{model.CheckNegotiate, "http"}:       negotiateHTTP,
	{model.CheckNegotiate, "https"}:      negotiateHTTP,
	{model.CheckNegotiate, "http_proxy"}: negotiateHTTP,
	{model.CheckNegotiate, "none"}:       on,

	{model.CheckNegotiate, "dialogue"}: negotiateDialogue,

	{model.CheckNegotiate, "dns"}:    negotiateDNS,
	{model.CheckNegotiate, "ldap"}:   negotiateLDAP,
	{model.CheckNegotiate, "ldaps"}:  negotiateLDAP,
	{model.CheckNegotiate, "mysql"}:  negotiateMySQL,
	{model.CheckNegotiate, "oracle"}: negotiateOracle,
	{model.CheckNegotiate, "pgsql"}:  negotiatePgSQL,
	{model.CheckNegotiate, "radius"}: negotiateRADIUS,

	{model.CheckNegotiate, "ftp"}:        negotiateFTP,
	{model.CheckNegotiate, "imap"}:       negotiateIMAP,
	{model.CheckNegotiate, "imaps"}:      negotiateIMAP,
	{model.CheckNegotiate, "nntp"}:       negotiateNNTP,
	{model.CheckNegotiate, "pop"}:        negotiatePOP,
	{model.CheckNegotiate, "pops"}:       negotiatePOP,
	{model.CheckNegotiate, "simpletcp"}:  negotiateSimple,
	{model.CheckNegotiate, "sip"}:        negotiateSIP,
	{model.CheckNegotiate, "smtp"}:       negotiateSMTP,
	{model.CheckNegotiate, "submission"}: negotiateSMTP,
}

// For returns the check that a target asks for, never nil: what does not exist
// is a check that says so.
func For(t model.Target) Func {
	k := Key{Kind: t.Kind}
	if t.Kind == model.CheckNegotiate {
		k.Application = t.Application
	}
	f, ok := All[k]
	if !ok {
		return notYet
	}
	if t.Via != model.ViaReal {
		f = byVirtualAddress(f)
	}
	if t.AgentPort != 0 {
		f = withAgent(f)
	}
	return f
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
