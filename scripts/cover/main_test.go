package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func summarize(t *testing.T, in, profile string) (string, bool) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "profile")
	if profile != "" {
		if err := os.WriteFile(name, []byte(profile), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	failed, err := run(strings.NewReader(in), &out, name)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), failed
}

func TestSummary(t *testing.T) {
	out, failed := summarize(t, `{"Action":"run","Package":"scoria/nbd","Test":"TestA"}
{"Action":"output","Package":"scoria/nbd","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"scoria/nbd","Test":"TestA"}
{"Action":"output","Package":"scoria/nbd","Test":"TestB","Output":"    x_test.go:1: no nbdkit here\n"}
{"Action":"skip","Package":"scoria/nbd","Test":"TestB"}
{"Action":"output","Package":"scoria/nbd","Output":"PASS\n"}
{"Action":"output","Package":"scoria/nbd","Output":"ok  \tscoria/nbd\t0.1s\tcoverage: 50% of statements\n"}
{"Action":"pass","Package":"scoria/nbd"}
`, "mode: set\nscoria/nbd/a.go:1.2,3.4 3 1\nscoria/nbd/a.go:5.2,6.4 1 0\nscoria/metadata/x.pb.go:1.2,3.4 100 0\n")
	if failed {
		t.Error("reported as failed")
	}
	for _, want := range []string{"ok  \tscoria/nbd", "no nbdkit here", "75.0 %"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "noise") {
		t.Errorf("output of a passed test in:\n%s", out)
	}
}

func TestFailures(t *testing.T) {
	for name, in := range map[string]string{
		"test": `{"Action":"output","Package":"scoria/nbd","Test":"TestA","Output":"the cause\n"}
{"Action":"fail","Package":"scoria/nbd","Test":"TestA"}
{"Action":"output","Package":"scoria/nbd","Output":"FAIL\tscoria/nbd\t0.1s\n"}
{"Action":"fail","Package":"scoria/nbd"}
`,
		"hung": `{"Action":"run","Package":"scoria/nbd","Test":"TestA"}
{"Action":"output","Package":"scoria/nbd","Test":"TestA","Output":"panic: test timed out: the cause\n"}
{"Action":"output","Package":"scoria/nbd","Output":"FAIL\tscoria/nbd\t600.1s\n"}
{"Action":"fail","Package":"scoria/nbd"}
`,
		"build": `{"ImportPath":"scoria/nbd","Action":"build-output","Output":"the cause\n"}
{"ImportPath":"scoria/nbd","Action":"build-fail"}
{"Action":"output","Package":"scoria/nbd","Output":"FAIL\tscoria/nbd [build failed]\n"}
{"Action":"fail","Package":"scoria/nbd"}
`,
	} {
		out, failed := summarize(t, in, "")
		if !failed || !strings.Contains(out, "the cause") || !strings.Contains(out, "FAIL\tscoria/nbd") {
			t.Errorf("%s: failed %t, output:\n%s", name, failed, out)
		}
	}
}
