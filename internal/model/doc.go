// Package model holds Batuta's nouns: virtual services and real servers, the
// table that a data plane carries, checks and their verdicts, the nodes of a
// cluster, their messages and resources.
//
// Values come in from config and from the wire, and go out to planes, agents,
// the API and the journal. The package decides nothing and does nothing: it
// imports the standard library only, reads no clock and starts no goroutine.
// Each noun that people see has one text form (String) and one JSON form,
// shared by the command line, golden files, logs and the API.
package model
