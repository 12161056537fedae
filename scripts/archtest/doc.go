// Package archtest holds the architecture of Scoria as tests: who may import whom and
// why, which packages must stay pure, and the house numbers. It reads the sources of the
// whole module and builds nothing, so it runs in a second.
//
// A failure names the file, the rule and the reason for the rule. Who finds the reason
// no longer true changes the rule here and the text in DESIGN.md, not the import alone.
package archtest
