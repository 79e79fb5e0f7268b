package ebpf

// The compiler is Debian 12's clang-14, so that the objects come out the same
// everywhere; CI generates them again and compares.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu" -type reason -type flow_state -type flow_flag -type real_flag -type service_flag -type choice -type feature -type address_role -type trace_cb -type trace_how -type control -type service_key -type rule -type service -type ring_entry -type real -type real_cpu -type counters -type route -type hop -type flow -type tuple -type bucket -type fragment_key -type fragment -type stay_key -type stay -type socket_end -type socket_note -type path -type hook -type event -type watch tc ../../../bpf/tc.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu" sweep ../../../bpf/sweep.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu" xdp ../../../bpf/xdp.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu" socket ../../../bpf/socket.c
