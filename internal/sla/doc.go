// Package sla is availability as arithmetic.
//
// What comes in: state intervals of a service and what was agreed about it
// (Account), a percentage or a down time (Allowed, Shortfall), or a
// description of parts that fail and are repaired (Parse, Cluster.Chain,
// Model.Evaluate). What goes out: statements, tables and predictions, with
// their one text form and one JSON form.
//
// The package keeps the share of time without service and not the share with
// it: seven nines and more are lost in the rounding of numbers close to one.
// No text of it ever rounds up to 100 %.
//
// It never reads a clock, a file or a journal: intervals, now and time zones
// are passed in. It does not decide what counts as down; whoever records the
// intervals does.
package sla
