// Package proto holds the schemas of Scoria's metadata messages. The generated code lies
// in metapb, abmpb and nsmpb; run go generate here after a change.
package proto

//go:generate ./generate.sh
