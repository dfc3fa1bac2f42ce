"""Work that torch's operations do in many passes, in one."""
