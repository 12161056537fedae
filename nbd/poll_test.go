package nbd

import "testing"

// TestPoller: only the one busy connection polls, only for a client that sends one request at a
// time, and ever more seldom for one that takes its time.
func TestPoller(t *testing.T) {
	srv := &Server{polls: true}
	a, b := &conn{srv: srv, single: pollAfter}, &conn{srv: srv, single: pollAfter}
	for i := range pollAfter {
		if a.poll.next(a) != 0 {
			t.Fatalf("polls after %d requests", i)
		}
	}
	if a.poll.next(a) == 0 {
		t.Fatal("the only busy connection does not poll")
	}
	a.poll.learn(true)

	a.single = pollAfter - 1
	if a.poll.next(a) != 0 {
		t.Error("polls for a client that sends several requests at once")
	}
	a.single = pollAfter

	polled, missed := 0, 0
	for range 10 * maxPollSkip {
		if a.poll.next(a) != 0 {
			polled++
			a.poll.learn(false)
			missed++
		}
	}
	if polled == 0 || polled > 25 {
		t.Errorf("polled %d of %d times in vain", polled, 10*maxPollSkip)
	}
	for a.poll.next(a) == 0 {
	}
	a.poll.learn(true)
	if a.poll.next(a) == 0 {
		t.Error("does not poll again after a success")
	}

	for i := range 3 * pollAfter {
		if b.poll.next(b) != 0 || a.poll.next(a) != 0 {
			t.Fatalf("two busy connections poll after %d requests", i)
		}
	}
	srv.polls = false
	for range 2 * pollAfter {
		if a.poll.next(a) != 0 {
			t.Fatal("polls on the only processor")
		}
	}
}
