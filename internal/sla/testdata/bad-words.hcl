titel = "x"
class = "fast"
unit "a" {
  mtbf = 1000
}
cluster "a" {
  preset = "active"
  mtbf = "5h"
  mttr = foo
}
k_of_n "k" {
  need = 3
  count = 2
  unit "u" { 
    mtbf = "1h"
    mttr = "0h"
  }
}
bloc "x" {}
chain "c" {
  state "good" { to = { bad = "1h", worse = "2h" } }
  state "bad" { 
     up = false 
     to = { } 
  }
}
cluster "d" {
  nodes    = -1
  mtbf     = ""
  mttr     = null
  coverage = [for x in [1, 2] : x]
  standby  = "${1 + 1}"
  beta     = true
}
