package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Sizes of the plot, in pixels.
const (
	labelWidth  = 230
	barsWidth   = 520
	barHeight   = 14
	rowGap      = 12
	titleHeight = 46
)

// colours tell the servers apart also for eyes that do not tell red from green.
var colours = []string{"#0072b2", "#999999", "#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#d55e00", "#f0e442"}

// plot draws a bar for each server in each row, as a multiple of the largest in that row,
// with a whisker from the least to the largest round. It is an SVG document.
func (d *result) plot() string {
	var b strings.Builder
	servers := d.servers()
	y := titleHeight
	for _, row := range d.rowNames() {
		u := unit(row)
		top := 0.0
		for _, t := range servers {
			if v := d.of(row, t, u); len(v) > 0 {
				top = max(top, v[len(v)-1])
			}
		}
		if top <= 0 {
			continue
		}
		fmt.Fprintf(&b, `<text x="8" y="%d" font-weight="bold">%s</text>`+"\n", y+barHeight-3, html.EscapeString(row+", "+u))
		for i, t := range servers {
			v := d.of(row, t, u)
			if len(v) == 0 {
				continue
			}
			d.bar(&b, y, t, colours[i%len(colours)], v, top)
			y += barHeight
		}
		y += rowGap
	}
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n"+
		`<rect width="100%%" height="100%%" fill="white"/>`+"\n"+`<text x="8" y="18" font-size="14">%s</text>`+"\n"+
		`<text x="8" y="34" fill="#555">median of the rounds; whiskers: least and largest; each row has its own scale</text>`+"\n",
		labelWidth+barsWidth+90, y, html.EscapeString(fmt.Sprintf("Scoria %s, %s", d.Machine.Commit, d.Date.UTC().Format("2006-01-02"))))
	return head + b.String() + "</svg>\n"
}

// bar draws one server's figure; v is sorted.
func (d *result) bar(b *strings.Builder, y int, target, colour string, v []float64, top float64) {
	x := func(f float64) float64 { return labelWidth + math.Round(f/top*barsWidth*10)/10 }
	m, middle := median(v), y+barHeight/2
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-6, y+barHeight-3, html.EscapeString(target))
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, labelWidth, y+1, x(m)-labelWidth, barHeight-2, colour)
	fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="black"/>`, x(v[0]), x(v[len(v)-1]), middle, middle)
	fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", x(max(m, v[len(v)-1]))+4, y+barHeight-3, number(m))
}
