k_of_n "many" {
  need  = 1
  count = 400
  series "row" {
    count = 3
    unit "u" {
      mtbf = "1h"
      mttr = "1h"
    }
  }
}
