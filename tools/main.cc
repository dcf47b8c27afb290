#include "tools/command.h"

int main(int argc, char** argv) { return tandem::tools::Main(argc, argv); }
