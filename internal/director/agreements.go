package director

import "github.com/batuta-ha/batuta/internal/model"

// Agreements are what the configuration promises about its services.
func (l *Loop) Agreements() map[model.ServiceKey]model.Agreement {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[model.ServiceKey]model.Agreement{}
	for i := range l.st.director.Services {
		if s := &l.st.director.Services[i]; s.Agreed != nil {
			all[s.Virtual.Key] = *s.Agreed
		}
	}
	return all
}
