service "tcp 10.0.0.1:80" {
  scheduler = "rr
}
