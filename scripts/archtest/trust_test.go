package archtest

import (
	"go/ast"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestTrustNamesWhatExists holds TRUST.md to the tests that there are: a promise whose proof
// was renamed or removed must not go on being called proved.
func TestTrustNamesWhatExists(t *testing.T) {
	page, err := os.ReadFile("../../TRUST.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, f := range load(t) {
		if f.test {
			inspect(f, func(d *ast.FuncDecl) { tests[d.Name.Name] = true })
		}
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllSubmatch(page, -1)
	if len(named) < 20 {
		t.Fatalf("%d tests are named on the page: the pattern does not fit it", len(named))
	}
	for _, m := range named {
		if !tests[string(m[1])] {
			t.Errorf("TRUST.md names %s, which does not exist", m[1])
		}
	}
	if !strings.Contains(string(page), "scripts/mutants/") {
		t.Error("TRUST.md does not tell of the mutation check")
	}
}
