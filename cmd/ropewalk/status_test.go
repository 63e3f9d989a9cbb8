package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/parts"
)

// TestStatusPrintable holds that what somebody else at the agent's address says is not obeyed by a terminal.
func TestStatusPrintable(t *testing.T) {
	for code, says := range map[int]string{200: `{"node":"n\u001b]0;owned\u0007","parts":[{"name":"a\u001b[2J","error":"\u001b[31mx\r\u009b1m","ready":true}]}`, 500: "no"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, says) }))
		var out strings.Builder
		run(t.Context(), []string{"status", "--metrics", strings.TrimPrefix(s.URL, "http://")}, nil, &out, &out)
		s.Close()
		if strings.ContainsAny(out.String(), "\x1b\x07\r\u009b") || out.Len() == 0 {
			t.Errorf("%d: %q", code, &out)
		}
	}
}

// TestStatusBegins holds that an agent that has only just begun has no parts, which programs can go through.
func TestStatusBegins(t *testing.T) {
	a := &agent{log: slog.New(slog.DiscardHandler)}
	w := httptest.NewRecorder()
	a.status("n", &parts.Supervisor{}, noSource{}).ServeHTTP(w, nil)
	if !strings.Contains(w.Body.String(), `"parts":[]`) {
		t.Error(w.Body)
	}
}
