package main

var volumeMutants = []Mutant{}
