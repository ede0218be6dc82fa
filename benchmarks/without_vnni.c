/* Another processor, at this one's speed: cc -shared -fPIC without_vnni.c -o without_vnni.so
   HIDE=vnni|avx512 LD_PRELOAD=./without_vnni.so program

   Linux can make CPUID fault where the processor allows it (cpuid_fault in /proc/cpuinfo); the handler answers with what the
   processor says, less AMX and VNNI (vnni), or less these and AVX-512 (avx512). A program that asks CPUID what it may use, as
   ONNX Runtime and torch do, takes the kernels of the other processor. */

#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))
/* Intel's manual, CPUID leaf 7: AVX-512 in ebx, ecx and edx; VNNI in ecx; AMX in edx; their later forms in subleaf 1. */
#define AVX512_B (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))
#define AVX512_C (BIT(1) | BIT(6) | BIT(12) | BIT(14))
#define AVX512_D (BIT(2) | BIT(3) | BIT(8) | BIT(23))
#define VNNI_C BIT(11)
#define AMX_D (BIT(22) | BIT(24) | BIT(25))
#define LATER_A (BIT(4) | BIT(5) | BIT(21) | BIT(23)) /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
#define LATER_D (BIT(4) | BIT(5) | BIT(10))           /* AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16 */

static int hide_avx512;

static void answer(int signal_number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *at = (const unsigned char *)registers[REG_RIP];
  unsigned a = registers[REG_RAX], b, c = registers[REG_RCX], d, leaf = a, subleaf = c;
  if (at[0] != 0x0f || at[1] != 0xa2) { /* a real fault */
    signal(signal_number, SIG_DFL);
    return;
  }
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  if (leaf == 7 && subleaf == 0) {
    c &= ~VNNI_C;
    d &= ~AMX_D;
    if (hide_avx512) b &= ~AVX512_B, c &= ~AVX512_C, d &= ~AVX512_D;
  } else if (leaf == 7 && subleaf == 1) {
    a &= ~LATER_A, d &= ~LATER_D;
  }
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action;
  const char *hide = getenv("HIDE");
  hide_avx512 = hide && strcmp(hide, "avx512") == 0;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, NULL);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
    perror("this processor's CPUID cannot be made to fault");
    exit(2);
  }
}
