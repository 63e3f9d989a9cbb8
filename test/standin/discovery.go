package standin

import (
	"encoding/json"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
)

// discover answers what is not about objects: version, health and discovery, the latter in its older form, which clients
// fall back to.
func (s *Server) discover(rw http.ResponseWriter, req *http.Request) {
	var found any
	switch req.URL.Path {
	case "/healthz", "/readyz", "/livez":
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write([]byte("ok")) // The client may be gone.
		return
	case "/version":
		found = version.Info{Major: "1", Minor: "36", GitVersion: "v1.36.0-standin"}
	case "/api":
		found = metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	case "/apis":
		found = groupList()
	default:
		found = resourceList(req.URL.Path)
	}
	if found == nil {
		http.NotFound(rw, req)
		return
	}
	raw, err := json.Marshal(found)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	send(rw, jsonWire{}, http.StatusOK, raw)
}

func groupList() metav1.APIGroupList {
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	seen := map[schema.GroupVersion]bool{}
	for _, r := range resources {
		gv := r.GroupVersion()
		if gv.Group == "" || seen[gv] {
			continue
		}
		seen[gv] = true
		v := metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version}
		list.Groups = append(list.Groups, metav1.APIGroup{
			Name: gv.Group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v,
		})
	}
	return list
}

// resourceList is what /api/v1 or /apis/GROUP/VERSION answers; nil if no such group is served.
func resourceList(path string) any {
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}}
	for _, r := range resources {
		gv := r.GroupVersion()
		if path != "/apis/"+gv.String() && path != "/api/"+gv.String() {
			continue
		}
		list.GroupVersion = gv.String()
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: r.plural, Namespaced: r.namespaced, Kind: r.Kind,
			Verbs: metav1.Verbs{"create", "delete", "get", "list", "patch", "update", "watch"},
		})
	}
	if list.APIResources == nil {
		return nil
	}
	return list
}
