package link

// As for the eBPF plane, the compiler is Debian 12's clang-14.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu" -type address -type sender sieve ../../bpf/sieve.c
