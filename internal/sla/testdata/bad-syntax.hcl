unit "a" {
  mtbf = "1000h
  mttr = "1h"
}
unit "b" { mtbf = "1h" mttr = "1h" }
