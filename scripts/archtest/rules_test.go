package archtest

const module = "scoria"

// tree says what the packages below a folder may import of the module, besides each other.
type tree struct {
	folder string
	may    []string // folders
	tests  []string // folders that their tests may import on top
	why    string
}

// trees are the arrows. The longest folder that holds a package decides.
var trees = []tree{
	{"cmd", []string{"nbd", "volumedriver", "alba", "metadata", "internal"}, nil,
		"cmd is the only place where the trees meet"},
	{"nbd", nil, []string{"internal"},
		"the NBD server serves any device: Device uses standard types only, so a volume fits by its shape and each tree is tested alone"},
	{"volumedriver", []string{"internal"}, nil,
		"the volume driver declares ObjectStore and Registry itself; erasure coding and Raft cannot reach the write path"},
	{"alba", []string{"metadata", "internal"}, nil,
		"the object layer speaks the vocabulary of metadata and knows neither volumes nor NBD"},
	{"metadata", []string{"internal"}, nil,
		"metadata is the lowest tree: everything speaks its vocabulary, so it may know nobody"},
	{"internal", nil, nil,
		"shared leaves know no tree"},
	{"scripts", []string{"nbd", "volumedriver", "alba", "metadata", "internal"}, nil,
		"scripts measure and drive whatever is there"},
	{"scripts/archtest", nil, nil,
		"the rules must build when nothing else does"},
	{"scripts/e2e", nil, nil,
		"end-to-end tests know the binary only: a client built from the server's code shares its mistakes"},
}

// fence keeps a foreign package inside some folders.
type fence struct {
	path  string   // import path; everything below it too
	only  []string // folders that may import it; none: nobody
	tests bool     // tests elsewhere may import it
	why   string
}

var fences = []fence{
	{"github.com/hashicorp/raft", []string{"metadata/raftnode"}, false,
		"the Raft library is replaceable as long as one package knows it; state machines stay pure and can be replayed without it"},
	{"github.com/hashicorp/raft-boltdb", []string{"metadata/raftnode"}, false,
		"where the Raft log is kept concerns raftnode alone"},
	{"github.com/hashicorp/go-hclog", []string{"metadata/raftnode"}, false,
		"only raftnode translates hclog; everybody else logs by the *slog.Logger that is passed in"},
	{"github.com/pojntfx/go-nbd/pkg/server", nil, true,
		"go-nbd's server has no FLUSH and can be made to deadlock and panic by its clients (nbd/DESIGN.md)"},
	{"github.com/pojntfx/go-nbd/pkg/client", nil, true,
		"go-nbd's client speaks only to its own server (nbd/DESIGN.md)"},
	{"github.com/pojntfx/go-nbd", []string{"nbd", "cmd"}, true,
		"NBD is known to one tree"},
	{"github.com/klauspost/reedsolomon", []string{"alba"}, true,
		"erasure coding is known to one tree"},
	{"github.com/spf13/cobra", []string{"cmd"}, false,
		"the command line is known to cmd: libraries take options"},
	{"github.com/prometheus/client_golang", []string{"cmd"}, false,
		"packages count, cmd exports the counters"},
}

// pure packages decide about data and are simulated: time, ids and randomness are arguments.
var pure = map[string]string{
	"volumedriver/clustermap": "a map that depends on time or chance cannot be replayed from the log",
	"alba/placement":          "a choice of disks must be reproducible in tests and simulations",
	"metadata":                "a vocabulary does nothing",
	"metadata/abm/state":      "all replicas must reach the same state from the same commands",
	"metadata/nsm/state":      "all replicas must reach the same state from the same commands",
	"internal/frame":          "a codec depends on its input only",
	"internal/blocksum":       "a checksum depends on its input only",
	"internal/units":          "a parser depends on its input only",
}

// impure are the imports that a pure package may not have (with what is below them).
var impure = []string{"os", "net", "log", "syscall", "math/rand", "crypto/rand", "golang.org/x/sys"}

// impureCalls are the functions of package time that a pure package may not call.
var impureCalls = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

// planned are packages that the rules name and that need not exist yet. A name goes
// out of this list when its package has come; from then on its absence is a failure.
var planned = map[string]bool{}

// designed are the folders that must say why they are as they are, once they hold code.
var designed = []string{"nbd", "volumedriver", "alba", "metadata", "internal"}

// The house numbers. They only ever get stricter.
const (
	maxFileP90     = 500  // lines of code files, 90th percentile
	maxFile        = 900  // lines of any code file
	longFunction   = 70   // lines; at most maxLongShare of the functions are longer
	maxLongShare   = 0.03 //
	maxFunction    = 160  // lines of any function
	maxInterface   = 10   // methods
	minExportedDoc = 0.95 // share of exported names with a comment
)
