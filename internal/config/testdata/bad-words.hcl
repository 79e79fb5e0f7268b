director {
  auto_relod = true
  log_file = "/nowhere/log"
  log_file = "/x"
}
defaults "x" {
}
defaults {
  real_server "10.0.0.1:80" {}
  check {
    interval = 10
    timeout = "10"
    jitter = "1m"
    fall = 0
  }
}
weight = 3
nodes { }
service "10.0.0.1" {
}
service "tcp 10.0.0.1:80" {
  scheduler = "wrrr"
  persistence = "1500ms"
  persistence_netmask = "33"
  check = 3
  quiescent { }
  check {
    type = "htpp"
    connects = 2.5
    password = 123456789
    secret = ["sesame"]
  }
  check {
  }
  real_server {
  }
  real_server "10.0.0.300:80" {}
  real_server "::1" {}
  real_server "10.0.0.2:http-alt" {}
  real_server "10.0.0.9-10.0.0.3:80" {}
  real_server "10.0.0.3:80" { forward = "nat" }
  real_server "10.0.0.4:80" {
    check { interval = "1s" }
  }
  real_server "10.0.0.5:80" {}
  real_server "10.0.0.5:80" {}
}
service "tcp 10.0.0.1:80" {
}
service "tpc 10.0.0.1:81" {
  check {
    type = "http"
    receive = "("
  }
}
service "tcp 10.0.0.1:82" {
  check {
    type = "http"
    request = "${x}"
    headers = { Host = "a", "X Y" = "b", Z = "a\nb" }
    status = ["20", "200-"]
    record = "A"
    via = "vip"
    tls {
      ca_file = "ca.pem"
    }
  }
  real_server "10.0.0.2:82" {}
}
service "tcp 10.0.0.1:83" {
  check {
    type = "dialogue"
  }
  real_server "10.0.0.2:83" {
    check {
      step { send = "x" }
      step {
        send = "x"
        expect = "("
      }
      step { close = false }
    }
  }
}
service "udp 10.0.0.1:84" {
  forward = "gate"
  one_packet = true
  check {
    via = "vip"
  }
  real_server "10.0.0.2:85" {}
  fallback "localhost.x:80" {}
}
service "fwm 9" {
  match {}
  match {
    protocol = "icmp"
    ports    = "90-80"
  }
  match {
    destination = "10.1.0.1/24"
    source      = "2001:db8::/32"
    ports       = "0"
  }
  match { destination = "vip" }
  real_server "10.0.0.2" {}
}
service "10.0.0.1:86" {
  match { ports = "86" }
  real_server "10.0.0.2:86" {}
}
