package system

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"scoria/nbd"
)

// metric is one figure of the exported list: what it means, and how it is read from a sample.
type metric struct {
	name, help string
	counter    bool
	value      func(*sample) float64
}

// metrics is the published list. Names follow Prometheus' conventions: bytes, seconds,
// _total for counters.
var metrics = []metric{
	{"scoria_degraded", "1 while scoria status tells problems, else 0", false, func(s *sample) float64 { return float64(min(len(s.problems), 1)) }},
	{"scoria_problems", "problems that scoria status tells", false, func(s *sample) float64 { return float64(len(s.problems)) }},

	{"scoria_nbd_connections", "open NBD connections", false, func(s *sample) float64 { return float64(s.nbd.Connections) }},
	{"scoria_nbd_waiting_requests", "NBD requests that wait in a volume", false, func(s *sample) float64 { return float64(s.nbd.Waiting) }},
	{"scoria_nbd_accepted_total", "NBD connections accepted", true, func(s *sample) float64 { return float64(s.nbd.Accepted) }},
	{"scoria_nbd_refused_total", "NBD connections closed because of a limit", true, func(s *sample) float64 { return float64(s.nbd.Refused) }},
	{"scoria_nbd_protocol_errors_total", "NBD connections closed because of what the client sent", true, func(s *sample) float64 { return float64(s.nbd.ProtocolErrors + s.nbd.HandshakeErrors) }},
	{"scoria_nbd_device_errors_total", "NBD requests that a volume failed", true, func(s *sample) float64 { return float64(s.nbd.DeviceErrors) }},

	{"scoria_volumes", "volumes", false, func(s *sample) float64 { return float64(s.volumes) }},
	{"scoria_volumes_open", "volumes that are open", false, func(s *sample) float64 { return float64(s.driver.OpenVolumes) }},
	{"scoria_write_buffer_limit_bytes", "most that all local logs may take", false, func(s *sample) float64 { return float64(s.driver.Pool.HardBytes) }},
	{"scoria_write_buffer_dirty_bytes", "acknowledged data in local logs that is not on the disk servers", false, func(s *sample) float64 { return float64(s.driver.Pool.DirtyBytes) }},
	{"scoria_write_buffer_cached_bytes", "data in local logs that is on the disk servers too", false, func(s *sample) float64 { return float64(max(s.driver.Pool.TotalBytes-s.driver.Pool.DirtyBytes, 0)) }},
	{"scoria_map_cache_bytes", "cluster map pages in memory", false, func(s *sample) float64 { return float64(s.driver.MapCache.Used) }},

	{"scoria_alba_put_bytes_total", "object bytes stored", true, func(s *sample) float64 { return float64(s.alba.PutBytes) }},
	{"scoria_alba_fragment_bytes_total", "fragment bytes stored", true, func(s *sample) float64 { return float64(s.alba.FragmentBytes) }},
	{"scoria_alba_read_bytes_total", "object bytes read", true, func(s *sample) float64 { return float64(s.alba.SliceBytes) }},
	{"scoria_alba_block_cache_hits_total", "blocks found in the block cache", true, func(s *sample) float64 { return float64(s.alba.CacheHits) }},
	{"scoria_alba_block_cache_misses_total", "blocks not found in the block cache", true, func(s *sample) float64 { return float64(s.alba.CacheMisses) }},
	{"scoria_alba_hedges_total", "reads also made from other fragments because the first was slow", true, func(s *sample) float64 { return float64(s.alba.Hedges) }},
	{"scoria_alba_rebuilt_total", "ranges decoded from other fragments for a read", true, func(s *sample) float64 { return float64(s.alba.Rebuilt) }},
	{"scoria_alba_corrupt_fragments_total", "fragments that reads found damaged", true, func(s *sample) float64 { return float64(s.alba.Corrupt) }},
	{"scoria_alba_missing_fragments_total", "fragments that reads found missing", true, func(s *sample) float64 { return float64(s.alba.Missing) }},
	{"scoria_alba_repaired_fragments_total", "fragments written by repair", true, func(s *sample) float64 { return float64(s.alba.Repaired) }},
	{"scoria_unreadable_objects", "objects that are damaged beyond repair (counted up to 100)", false, func(s *sample) float64 { return float64(len(s.maintenance.Unreadable)) }},
}

// nbdCommands are the labels of scoria_nbd_requests_total and its siblings.
var nbdCommands = []struct {
	name  string
	stats func(*nbd.Stats) nbd.CommandStats
}{
	{"read", func(s *nbd.Stats) nbd.CommandStats { return s.Read }},
	{"write", func(s *nbd.Stats) nbd.CommandStats { return s.Write }},
	{"flush", func(s *nbd.Stats) nbd.CommandStats { return s.Flush }},
	{"trim", func(s *nbd.Stats) nbd.CommandStats { return s.Trim }},
	{"write_zeroes", func(s *nbd.Stats) nbd.CommandStats { return s.WriteZeroes }},
	{"cache", func(s *nbd.Stats) nbd.CommandStats { return s.Cache }},
	{"block_status", func(s *nbd.Stats) nbd.CommandStats { return s.BlockStatus }},
}

// collector reads one sample per scrape and exports the list above from it.
type collector struct {
	sys      *System
	descs    []*prometheus.Desc
	requests *prometheus.Desc
	errors   *prometheus.Desc
	bytes    *prometheus.Desc
	osdUsed  *prometheus.Desc
	osdUp    *prometheus.Desc
	taskDone *prometheus.Desc
	taskLeft *prometheus.Desc
}

func newCollector(sys *System) *collector {
	c := &collector{
		sys:      sys,
		requests: prometheus.NewDesc("scoria_nbd_requests_total", "NBD requests answered", []string{"command"}, nil),
		errors:   prometheus.NewDesc("scoria_nbd_request_errors_total", "NBD requests answered with an error", []string{"command"}, nil),
		bytes:    prometheus.NewDesc("scoria_nbd_bytes_total", "bytes of NBD requests that succeeded", []string{"command"}, nil),
		osdUsed:  prometheus.NewDesc("scoria_osd_used_bytes", "bytes used on a disk server", []string{"osd"}, nil),
		osdUp:    prometheus.NewDesc("scoria_osd_up", "1 when the disk server answers and is well, else 0", []string{"osd"}, nil),
	}
	c.taskDone = prometheus.NewDesc("scoria_maintenance_done_total", "things done by maintenance: keys deleted, fragments written or checked, orphans removed", []string{"task"}, nil)
	c.taskLeft = prometheus.NewDesc("scoria_maintenance_left", "things that maintenance knows to remain", []string{"task"}, nil)
	for _, m := range metrics {
		c.descs = append(c.descs, prometheus.NewDesc(m.name, m.help, nil, nil))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range append(c.descs, c.requests, c.errors, c.bytes, c.osdUsed, c.osdUp, c.taskDone, c.taskLeft) {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.sys.sample()
	for i, m := range metrics {
		kind := prometheus.GaugeValue
		if m.counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(c.descs[i], kind, m.value(s))
	}
	for _, cmd := range nbdCommands {
		st := cmd.stats(&s.nbd)
		ch <- prometheus.MustNewConstMetric(c.requests, prometheus.CounterValue, float64(st.Requests), cmd.name)
		ch <- prometheus.MustNewConstMetric(c.errors, prometheus.CounterValue, float64(st.Errors), cmd.name)
		ch <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, float64(st.Bytes), cmd.name)
	}
	for _, t := range s.maintenance.Tasks {
		ch <- prometheus.MustNewConstMetric(c.taskDone, prometheus.CounterValue, float64(t.Done), t.Name)
		ch <- prometheus.MustNewConstMetric(c.taskLeft, prometheus.GaugeValue, float64(t.Left), t.Name)
	}
	for _, o := range s.osds {
		up := 1.0
		if o.Problem != "" {
			up = 0
		}
		id := osdLabel(o)
		ch <- prometheus.MustNewConstMetric(c.osdUsed, prometheus.GaugeValue, float64(o.Used), id)
		ch <- prometheus.MustNewConstMetric(c.osdUp, prometheus.GaugeValue, up, id)
	}
}

// metricsHandler serves /metrics.
func (s *System) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(s), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}
