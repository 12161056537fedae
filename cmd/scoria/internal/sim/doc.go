// Package sim simulates the whole system in one process and in virtual time: the real gateway
// (NBD server, volume driver, ALBA client, maintenance), the real disk servers behind their
// network protocol, the real ALBA manager and namespace manager, on simulated disks and a
// simulated network that fail as a seed tells them to. Everything is in tests; DESIGN.md
// says what is simulated, what may fail, and what is checked.
package sim
