target = 0.9995
unit "a" {
  mtbf         = "1000h"
  availability = "99%"
  mttr         = "1h"
}
unit "b" {
  availability = "100%"
  mttr         = "1h"
}
unit {
  mtbf = "1h"
  mttr = "1h"
}
cluster "c" {
  nodes    = 2
  required = 3
  mtbf     = "1000h"
  mttr     = "10h"
}
cluster "d" {
  nodes    = 2.5
  mtbf     = "1000h"
  mttr     = [10]
  coverage = 1.5
  unit "inside" {
    mtbf = "1h"
    mttr = "1h"
  }
}
cluster "e" {
  preset = "n+1"
  spares = 3
  mtbf   = "1000h"
  mttr   = "10h"
}
parallel "f" {
  redundancy = "lazy"
  count      = 2
}
k_of_n "g" {
  need  = 1
  beta  = 0.1
  count = 0
  unit "u" {
    mtbf = "1h"
    mttr = "1h"
  }
  unit "v" {
    mtbf = "1h"
    mttr = "1h"
  }
}
chain "h" {
  state "good" {
    to = { bad = "1h" }
  }
  state "bad" {
    up = "perhaps"
    to = { good = "0h" }
  }
  state "bad" {
    to = "good"
  }
}
chain "i" {
  state "good" {
    to = { bad = "1h", good = "1h" }
  }
  state "bad" {
    up = false
    to = "good"
  }
}
