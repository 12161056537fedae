package main

import "github.com/spf13/cobra"

func newDumpCommand() *cobra.Command { return &cobra.Command{Use: "dump FILE"} }
