package main

import "strings"

// step is something to try, and a pattern of what it prints.
type step struct{ command, prints string }

// steps are in the order in which they are to be tried. The test does them all.
var steps = []struct {
	what  string
	steps []step
}{
	{"Services by name, on this node and others; from outside one sees the node's address:", []step{
		{"make lab-shell POD=shop/web CMD='curl -s api:9000'", `^shop/api-58c4d7f9b-\w+ on node-[ab] answers (10\.244\.1\.10|fd00:10:244:1::10)\n$`},
		{"make lab-shell POD=shop/web CMD='curl -s reports.batch:8080'", `^batch/reports-7c9f8b6d5-k4x9z on node-batch answers 10\.244\.1\.10\n$`},
		{"make lab-shell POD=shop/web CMD='curl -s db-1.db:5432'", `^shop/db-1 on node-b answers (10\.244\.1\.10|fd00:10:244:1::10)\n$`},
		{"make lab-shell POD=shop/web CMD='curl -s legacy'", `^192\.0\.2\.10[12] outside answers 192\.0\.2\.11\n$`},
	}},
	{"What a pod knows of others:", []step{
		{"make lab-shell POD=shop/web CMD='dig +search +short db'", `(?m)^10\.244\.1\.30$`},
		{"make lab-shell POD=shop/web CMD='getent hosts api'", `(?m)^\S+ +api\.shop\.svc\.cluster\.local$`},
		{"make lab-shell POD=shop/web CMD='cat /etc/hosts'", `(?m)^10\.244\.1\.10\tweb-6f7d9c4b8-4mzkt$`},
		{"make lab-shell POD=shop/web CMD=env", `(?m)^WEB_SERVICE_HOST=10\.96\.12\.34$`},
	}},
	{"A node:", []step{
		{"make lab-shell NODE=node-a CMD='ropewalk status'", `(?m)^proxy +ready`},
		{"make lab-shell NODE=node-a CMD='ip route'", `(?m)^10\.244\.2\.0/24 .*rw-vxlan`},
		{"make lab-shell NODE=node-a CMD='nft list table ip ropewalk'", `10\.96\.12\.34`},
	}},
	{"The cluster is " + state + "/manifests. Change it, and pods know: another name, another address.", []step{
		{"sed -i s/trial.partner/new.partner/ " + state + "/manifests/shop-web.yaml", `^$`},
		{"make lab-shell POD=shop/web-7b CMD='grep partner /etc/hosts'", `192\.0\.2\.131\tnew\.partner\.example`},
		{"sed -i s/10.96.12.34/10.96.12.99/ " + state + "/manifests/shop-web.yaml", `^$`},
		{"make lab-shell POD=shop/api CMD='dig +search +short web; curl -s -m 2 web'", `^10\.96\.12\.99\nshop/web-\S+ on node-[ab] answers 10\.244\.1\.20\n$`},
	}},
}

// guide says what to try.
func guide() string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString(s.what + "\n\n")
		for _, c := range s.steps {
			b.WriteString("    " + c.command + "\n")
		}
		b.WriteString("\n")
	}
	b.WriteString("Without CMD there is a shell. `make lab-down` takes all away.\n")
	return b.String()
}
