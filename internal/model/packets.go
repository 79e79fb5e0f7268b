package model

// LinkPackets counts what a heartbeat link has dropped before anybody looked
// at it. Name is the link's, as in LinkView.
type LinkPackets struct {
	Name    string `json:"name"`
	Flooded bool   `json:"flooded"` // the kernel has been told to drop what cannot be new
	Kernel  uint64 `json:"kernel"`  // dropped by the kernel: no messages, not to be new in a flood, or for want of room
	Again   uint64 `json:"again"`   // the same bytes within a moment
	Bad     uint64 `json:"bad"`     // not authentic, beyond those that are complained of
}
