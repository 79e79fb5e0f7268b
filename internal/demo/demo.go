// Package demo shows a whole cluster on this machine: it builds one, puts
// load on its address, takes a real server out, hands over, crashes the
// active director, and measures from the client's side what that cost. What
// comes in is how long to run; what goes out is an account for people and a
// Report. The cluster's programs are real: nothing here decides for them.
package demo
