chain "c" {
  state "good" {
    to = { lost = "1000h" }
  }
  state "lost" {
    up = false
    to = {}
  }
}
