package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeFile writes a file of the test's own and returns its path.
func writeFile(t *testing.T, name, contents string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(contents), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// keyPair returns the files of a fresh self-signed certificate.
func keyPair(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		writeFile(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder})))
}

const kubeconfig = `apiVersion: v1
kind: Config
current-context: %s
clusters:
- name: one
  cluster: {server: "http://127.0.0.1:7001"}
- name: two
  cluster: {server: "https://127.0.0.1:7002", certificate-authority: %s}
- name: empty
  cluster: {}
users:
- name: u
  user: {token: t}
contexts:
- name: first
  context: {cluster: one, user: u}
- name: second
  context: {cluster: two, user: u}
- name: lost
  context: {cluster: nowhere, user: u}
- name: nobody
  context: {cluster: one, user: nobody}
- name: blank
  context: {cluster: empty, user: u}
`

func TestConfigIsResolved(t *testing.T) {
	cert, key := keyPair(t)
	kc := writeFile(t, "kubeconfig", fmt.Sprintf(kubeconfig, "first", filepath.Base(cert)))
	if err := os.Link(cert, filepath.Join(filepath.Dir(kc), filepath.Base(cert))); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		c    Config
		host string
	}{
		{"current context", Config{Kubeconfig: kc}, "http://127.0.0.1:7001"},
		{"named context, file beside it", Config{Kubeconfig: kc, Context: "second"}, "https://127.0.0.1:7002"},
		{"kubeconfig wins", Config{Kubeconfig: kc, Endpoint: "http://127.0.0.1:9"}, "http://127.0.0.1:7001"},
		{"URL", Config{Endpoint: "http://127.0.0.1:8080"}, "http://127.0.0.1:8080"},
		{"host and port", Config{Endpoint: "127.0.0.1:8080"}, "127.0.0.1:8080"},
		{"TLS", Config{Endpoint: "https://[::1]:6443", CertFile: cert, KeyFile: key, CAFile: cert}, "https://[::1]:6443"},
		{"only a CA", Config{Endpoint: "https://[::1]:6443", CAFile: cert}, "https://[::1]:6443"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rc, err := tt.c.restConfig()
			if err != nil {
				t.Fatal(err)
			}
			if rc.Host != tt.host {
				t.Errorf("host %q, want %q", rc.Host, tt.host)
			}
			if tt.c.CertFile == "" { // client-go starts a goroutine that watches a client's certificate
				if _, err := New(tt.c); err != nil {
					t.Errorf("New: %v", err)
				}
			}
		})
	}
}

func TestBadConfigs(t *testing.T) {
	cert, key := keyPair(t)
	_, otherKey := keyPair(t)
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	kc := writeFile(t, "kubeconfig", fmt.Sprintf(kubeconfig, "first", none))
	noCurrent := writeFile(t, "no-current", fmt.Sprintf(kubeconfig, `""`, cert))
	badCurrent := writeFile(t, "bad-current", fmt.Sprintf(kubeconfig, "third", cert))
	text := writeFile(t, "text", "no: [config")
	list := writeFile(t, "list", "apiVersion: v1\nkind: Config\n")
	blank := writeFile(t, "blank", " \n")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, tt := range []struct {
		name string
		c    Config
		says []string
	}{
		{"nothing, outside a cluster", Config{}, []string{"neither kubeconfig nor endpoint", "pod"}},
		{"no file", Config{Kubeconfig: none}, []string{"kubeconfig", none, "no such file"}},
		{"a directory", Config{Kubeconfig: dir}, []string{"kubeconfig", dir, "directory"}},
		{"no YAML", Config{Kubeconfig: text}, []string{text, "kind: Config"}},
		{"blank", Config{Kubeconfig: blank}, []string{blank, "empty"}},
		{"no contexts", Config{Kubeconfig: list}, []string{list, "no contexts"}},
		{"unknown context", Config{Kubeconfig: kc, Context: "frist"}, []string{kc, `"frist"`, "first, lost, nobody, second"}},
		{"no current context", Config{Kubeconfig: noCurrent}, []string{noCurrent, "current-context", "first"}},
		{"unknown current context", Config{Kubeconfig: badCurrent}, []string{badCurrent, `"third"`, "second"}},
		{"unknown cluster", Config{Kubeconfig: kc, Context: "lost"}, []string{kc, `"nowhere"`, "one, two"}},
		{"unknown user", Config{Kubeconfig: kc, Context: "nobody"}, []string{kc, `"nobody"`, "u"}},
		{"no server", Config{Kubeconfig: kc, Context: "blank"}, []string{kc, `"empty"`, "server"}},
		{"its CA is missing", Config{Kubeconfig: kc, Context: "second"}, []string{kc, none}},
		{"context without kubeconfig", Config{Context: "x"}, []string{`"x"`, "kubeconfig"}},
		{"files without endpoint", Config{CAFile: cert}, []string{"endpoint"}},
		{"certificate without key", Config{Endpoint: "https://h", CertFile: cert}, []string{cert, "key", "together"}},
		{"key without certificate", Config{Endpoint: "https://h", KeyFile: key}, []string{key, "certificate", "together"}},
		{"missing certificate", Config{Endpoint: "https://h", CertFile: none, KeyFile: key}, []string{none, "no such file"}},
		{"missing key", Config{Endpoint: "https://h", CertFile: cert, KeyFile: none}, []string{none, "no such file"}},
		{"another's key", Config{Endpoint: "https://h", CertFile: cert, KeyFile: otherKey}, []string{cert, otherKey, "pair"}},
		{"missing CA", Config{Endpoint: "https://h", CAFile: none}, []string{none, "no such file"}},
		{"CA without certificate", Config{Endpoint: "https://h", CAFile: key}, []string{key, "PEM"}},
		{"scheme", Config{Endpoint: "ftp://h"}, []string{"ftp://h", "https://host:6443"}},
		{"no host", Config{Endpoint: "https://"}, []string{"https://host:6443"}},
		{"no URL", Config{Endpoint: "http://[::1"}, []string{"http://[::1", "https://host:6443"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.c)
			if err == nil {
				t.Fatal("no error")
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}
