package config

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// highestKey is the highest number of a key.
const highestKey = 15

// parseAuthkeys reads an authkeys file into a keyring. No message shows a
// key.
func parseAuthkeys(p *problems, data []byte) model.Keyring {
	ring := model.Keyring{Keys: map[int]model.AuthKey{}}
	var auth word // the number of the auth line that counts
	found := false
	defined := map[int]pos{}
	for i, line := range splitLines(p, data) {
		text, indent := trimLeft(line)
		if text == "" || text[0] == '#' {
			continue
		}
		words := fields(word{pos{i + 1, indent + 1}, text}, "")
		if text[0] == 'a' {
			if n, ok := authLine(p, words); ok {
				auth, found = words[1], true
				ring.Send = n
				if at, early := defined[n]; early {
					p.error(at, fmt.Sprintf("key %d stands above the line auth %d", n, n), "put the auth line first: Heartbeat does not find the key like this")
				}
			}
			continue
		}
		n, key, ok := keyLine(p, words)
		if !ok {
			continue
		}
		if at, twice := defined[n]; twice {
			p.warn(words[0].pos, fmt.Sprintf("key %d is already on line %d; this line replaces it", n, at.line), "remove one of them")
		}
		ring.Keys[n], defined[n] = key, words[0].pos
	}
	if !found {
		p.error(top, "there is no auth line: messages could not be signed", "add a line: auth 1")
		return ring
	}
	if _, ok := defined[ring.Send]; !ok {
		p.error(auth.pos, fmt.Sprintf("there is no key %d", ring.Send), fmt.Sprintf("add a line: %d sha1 SECRET", ring.Send))
	}
	warnWeak(p, ring, defined)
	return ring
}

// shortSecret is below what a secret needs that encrypts: fewer characters,
// even random ones, can be guessed by whoever recorded a packet.
const shortSecret = 16

// warnWeak tells of keys that are worth less than they seem: all keys of the
// file verify, so the weakest one decides who is believed.
func warnWeak(p *problems, ring model.Keyring, defined map[int]pos) {
	for n, key := range ring.Keys {
		switch {
		case key.Method == model.AuthCRC && len(ring.Keys) > 1:
			p.warn(defined[n], fmt.Sprintf("key %d: crc has no secret, and every key of the file is accepted: whoever reaches the heartbeat port is believed, whatever the other keys are", n), "remove the line")
		case key.Method.Encrypts() && len(key.Secret) < shortSecret:
			p.warn(defined[n], fmt.Sprintf("key %d: whoever records one packet can try out secrets as short as this one", n), fmt.Sprintf("write at least %d random characters: openssl rand -hex 32", shortSecret))
		}
	}
}

func authLine(p *problems, words []word) (int, bool) {
	if words[0].text != "auth" {
		p.error(words[0].pos, "a line that begins with a must be auth N", "write auth N, or N METHOD KEY")
		return 0, false
	}
	if len(words) < 2 {
		p.error(words[0].pos, "auth has no key number", "write auth N")
		return 0, false
	}
	return keyNumber(p, words[1])
}

func keyNumber(p *problems, w word) (int, bool) {
	n, ok := number(w.text)
	if !digits(w.text) || !ok || n > highestKey {
		p.error(w.pos, fmt.Sprintf("a key number is expected here, from 0 to %d", highestKey), "write auth N, or N METHOD KEY")
		return 0, false
	}
	return n, true
}

// authMethods by their names in the file.
var authMethods = map[string]model.AuthMethod{"crc": model.AuthCRC, "md5": model.AuthMD5, "sha1": model.AuthSHA1,
	"sha256": model.AuthSHA256, "sha384": model.AuthSHA384, "sha512": model.AuthSHA512,
	"xchacha20": model.AuthXChaCha20}

func keyLine(p *problems, words []word) (n int, key model.AuthKey, ok bool) {
	if n, ok = keyNumber(p, words[0]); !ok {
		return 0, key, false
	}
	if len(words) < 2 {
		p.error(words[0].pos, fmt.Sprintf("key %d has no method", n), fmt.Sprintf("write %d sha1 SECRET", n))
		return 0, key, false
	}
	method, known := authMethods[words[1].text]
	if !known {
		// The word may be a secret whose method was forgotten: it is not shown.
		hint := "write sha256 (or sha384, sha512), xchacha20 to encrypt, or what an original Heartbeat knows: sha1, md5 or crc"
		if _, capitals := authMethods[strings.ToLower(words[1].text)]; capitals {
			hint = "write the method in small letters"
		}
		p.error(words[1].pos, fmt.Sprintf("key %d: unknown method", n), hint)
		return 0, key, false
	}
	key.Method = method
	switch {
	case method == model.AuthCRC && len(words) > 2:
		p.error(words[2].pos, fmt.Sprintf("key %d: crc has no key", n), "remove what follows crc, or write md5 or sha1")
		return 0, key, false
	case method != model.AuthCRC && len(words) < 3:
		p.error(words[1].pos, fmt.Sprintf("key %d: %s needs a key", n, method), fmt.Sprintf("write %d %s SECRET", n, method))
		return 0, key, false
	case len(words) > 3 && !strings.HasPrefix(words[3].text, "#"):
		p.warn(words[3].pos, fmt.Sprintf("key %d: what follows the first word of the key is ignored", n), "a key is one word")
	}
	if len(words) > 2 {
		key.Secret = words[2].text
	}
	return n, key, true
}

// checkMode holds the file's permissions against Heartbeat's rule, neither
// group nor others may read it, and against what Heartbeat overlooks: nor may
// they write it.
func checkMode(p *problems, mode fs.FileMode) {
	switch {
	case mode.Perm()&0o044 != 0:
		p.here(top, fmt.Sprintf("the file is readable by others (mode %04o): whoever reads the keys can command the cluster", mode.Perm()), "chmod 600 it")
	case mode.Perm()&0o022 != 0:
		p.here(top, fmt.Sprintf("the file is writable by others (mode %04o): whoever writes the keys can command the cluster", mode.Perm()), "chmod 600 it")
	}
}
