title  = "web shop"
target = "99.95%"
class  = "highly-available"

unit "uplink" {
  mtbf = "4000h"
  mttr = "4h"
}
cluster "directors" {
  preset   = "active-passive"
  mtbf     = "1000h"
  mttr     = "10h"
  coverage = 0.99
  failover = "2s"
}
k_of_n "web" {
  need       = 2
  count      = 4
  redundancy = "passive"
  beta       = 0.02
  unit "web server" {
    mtbf = "2000h"
    mttr = "5h"
  }
}
