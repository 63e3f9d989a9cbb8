//go:build e2e

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	api "k8s.io/client-go/tools/clientcmd/api"
)

// pki is an authority for certificates that holds for one run.
type pki struct {
	dir string
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
}

// newPKI makes an authority, ca.crt in dir, and the key by which tokens of service accounts are signed, sa.key and sa.pub.
func newPKI(t *testing.T, dir string) *pki {
	t.Helper()
	p := &pki{dir: dir}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "ropewalk-e2e"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	p.ca, p.key = p.sign(t, "ca", template)
	p.newAccountsKey(t)
	return p
}

// newAccountsKey makes the key by which tokens of service accounts are signed. Those of before are not good any more, once all know it.
func (p *pki) newAccountsKey(t *testing.T) {
	t.Helper()
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(accounts.Public())
	err = errors.Join(err, os.WriteFile(p.file("sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600))
	if err = errors.Join(err, p.writeKey("sa", accounts)); err != nil {
		t.Fatal(err)
	}
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

// issue makes a certificate, name.crt and name.key, of a user and its groups. It is good for a server at the hosts, too.
func (p *pki) issue(t *testing.T, name, user string, groups []string, hosts ...string) {
	t.Helper()
	c := &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	p.sign(t, name, c)
}

// sign writes a certificate and its key. Without an authority it is its own.
func (p *pki) sign(t *testing.T, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	parent, signer := p.ca, p.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	err = errors.Join(err, os.WriteFile(p.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600), p.writeKey(name, key))
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

func (p *pki) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	return errors.Join(err, os.WriteFile(p.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
}

// kubeconfig writes a file for who has the certificate of that name.
func (p *pki) kubeconfig(t *testing.T, to, name string) {
	t.Helper()
	var err error
	read := func(name string) []byte {
		b, e := os.ReadFile(p.file(name))
		err = errors.Join(err, e)
		return b
	}
	c := api.NewConfig()
	c.Clusters["e2e"] = &api.Cluster{Server: server, CertificateAuthorityData: read("ca.crt")}
	c.AuthInfos["e2e"] = &api.AuthInfo{ClientCertificateData: read(name + ".crt"), ClientKeyData: read(name + ".key")}
	c.Contexts["e2e"] = &api.Context{Cluster: "e2e", AuthInfo: "e2e"}
	c.CurrentContext = "e2e"
	err = errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755))
	if err = errors.Join(err, clientcmd.WriteToFile(*c, to)); err != nil {
		t.Fatal(err)
	}
}
