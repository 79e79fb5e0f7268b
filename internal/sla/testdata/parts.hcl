# Everything a model file can say.
title = "two sites"
class = "critical"

parallel "sites" {
  series "north" {
    unit "north power" {
      availability = "99.9%"
      mttr         = "2h"
    }
    cluster "north nodes" {
      nodes    = 3
      spares   = 1
      required = 2
      mtbf     = "2000h"
      mttr     = "8h"
      crews    = 2
      coverage = "97 %"
      failover = "15s"
      standby  = 0.5
      beta     = 0.01
    }
  }
  series "south" {
    count = 2
    unit "south line" {
      mtbf = "1y"
      mttr = "6h"
    }
  }
}

chain "database" {
  state "good" {
    to = { replica = "1000h" }
  }
  state "replica" {
    capacity = 0.5
    to       = { good = "10h", lost = "1000h" }
  }
  state "lost" {
    up = false
    to = { replica = "20h" }
  }
}

k_of_n "disks" {
  need  = 4
  count = 5
  beta  = 0.05
  unit "disk" {
    mtbf = "1200000h"
    mttr = "1d"
  }
}
