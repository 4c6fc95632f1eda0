"""Runs what Triton compiles kernels to, PTX, thread by thread in NumPy, and watches every access to memory.

Triton's interpreter runs one program after the other, each as a sequence of operations on whole blocks: threads are
none of its business, and so neither is whether a barrier stands where one is needed, or what is loaded and stored
where. Here warps run at odds with each other, in orders drawn at random, programs of a grid at once, and reported is

- what is loaded or stored outside of the arrays given, or not aligned to its size;
- what is loaded, from global or shared memory, that nothing has stored;
- accesses that conflict: by two warps of a program with no barrier between them, by two programs of a grid, or by
  threads that store different values to one place with one instruction;
- threads that wait at different barriers, or are missing where a warp exchanges values;
- of kernels whose launches overlap: what is written, or what the kernel before writes is loaded, without waiting for
  its end, and what is let go on before that;

and counted are bytes, 32-byte sectors, passes through shared memory's banks, barriers and instructions.

What this does not see: what ptxas makes of the PTX, memory that caches do not keep coherent, how long anything takes,
and the order of threads within a warp, which run in step here. Approximate instructions (ex2.approx and the like) are
off by as much as NVIDIA's documentation allows, but not in the same way; a fused multiply-add of float64 rounds twice.

    code       PTX taken apart
    values     what single instructions compute
    translate  instructions as Python
    kernel     code, and what of it is translated
    memory     memory that keeps account of who touches it
    machine    warps, barriers, programs, and chance
    access     the instructions that touch memory
    compiling  kernels to PTX, in another process
    device     launches of our kernels, on tensors
"""
